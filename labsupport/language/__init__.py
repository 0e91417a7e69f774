"""Language models: two networks, their weights and tokenizers, generation with a cache, serving, several processes.

`networks` holds the encoder (BERT) and the decoder (Llama) in plain PyTorch; `weights` finds what `lab` and `test`
fetched and reads it; `tokenizer` turns text into numbers; `cached` steps a decoder whose cache the caller owns, in
PyTorch, ONNX Runtime or TensorRT; `generation` picks tokens; `serving` schedules requests; `parallel` uses processes.
"""
