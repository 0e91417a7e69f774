"""The countable rules of a lab notebook. Each takes a Book and returns plain sentences, one a violation."""

from __future__ import annotations

import ast
import base64
import json
import math
import re
import socket
import statistics
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import nbformat
from IPython.core.inputtransformer2 import TransformerManager

from labsupport.exercises import editions

COMPARED = "nbval-check-output"
FORBIDDEN = {
    r"[!%]pip\b": "installs packages",
    r"\bpip install\b": "installs packages",
    r"\bsys\.path\b": "changes sys.path",
    r"\burlopen\b": "uses the network",
    r"\brequests\.": "uses the network",
    r"\bwget\b": "uses the network",
    r"\bimport \*": "imports a star",
    r"\bdisplay_id\b": "updates a display, which nbval cannot follow",
    r"\bclear_output\b": "clears outputs, which nbval cannot follow",
}
MACHINE = {
    r"(?<![\w.:/])/(?:home|work|root|tmp|usr|opt|var|mnt|data|workspace|Users|private)/": "an absolute path",
    r"\b[A-Za-z]:\\\w": "an absolute path",
    r"\b0x[0-9a-fA-F]{6,}\b": "a memory address",
    r"\b[\w-]+\.(?:local|internal|lan|localdomain)\b": "a host name",
}
CHANGING = {
    r"\d\s?(?:ns|[uµμ]s|ms|sec|secs|seconds?|minutes?|it/s|img/s|images/s|samples/s|fps)\b": "a timing",
    r"\d\s+s\b|\bms\b": "a timing",
    r"\b20\d\d-\d\d-\d\d\b|\b\d\d:\d\d:\d\d\b": "a date or a time of day",
}


# A helper, and the call of TensorRT, torch, ONNX Runtime, … that a learner meets before it: as patterns of code.
API_BEFORE_HELPER = {
    r"\bexport\.to_onnx\(": r"\btorch\.onnx\.export\(",
    r"\bruntimes\.(?:OnnxRuntime|best)\(": r"\bInferenceSession\(",
    r"\bbuild\.engine\(": r"\.build_serialized_network\(",
    r"\bruntimes\.TensorRt\(": r"\.execute_async_v3\(",
    r"\bbenchmarking\.device_latency\(|\bclock=\"device\"": r"\btorch\.cuda\.Event\(",
    r"\bbenchmarking\.energy\(": r"\bnvmlDeviceGetTotalEnergyConsumption\(",
    r"\bcuda_graph=True\b": r"\btorch\.cuda\.CUDAGraph\(",
    r"\bprecision=\"fp16\"|\"precision\": \"fp16\"": r"\bBuilderFlag\.FP16\b",
    r"\bfusion\.xray\(": r"\boptimized_model_filepath\b|\.create_engine_inspector\(",
    r"\bfusion\.profile\(": r"\bIProfiler\b",
    r"\blaunches\.traced\(": r"\btorch\.profiler\b",
    r"\.activation_mib\b": r"\.device_memory_size(?:_v2)?\b",
    r"\bbuild\.Profile\(": r"\bcreate_optimization_profile\(",
    r"\bio_formats\b": r"\ballowed_formats\b",
    r"\bworkspace_mib=": r"\bget_memory_pool_limit\(",
    r"\bquantization\.to_qdq\(": r"QuantizeLinear",
    r"\bqat\.prepare\(": r"\bfake_quantize_per_tensor_affine\(",
    r"\bpruning\.magnitude\(": r"\bprune\.l1_unstructured\(",
    r"\bpruning\.(?:coupled|shrink)\(": r"\btorch_pruning\.DependencyGraph\(",
    r"\bpruning\.with_sparse_kernels\b": r"\bBuilderFlag\.SPARSE_WEIGHTS\b",
    r"\bcuts\.split\(": r"\.Extractor\(",
    r"\bquantization\.entropy_calibrator\(": r"\bIInt8EntropyCalibrator2\b",
    r"\bstreams\.Lane\(": r"\btorch\.cuda\.Stream\(",
    r"\btransfers\.(?:copy|overlap)\(": r"\bpin_memory\b",
    r"\bplugins\.(?:load_library|decorated|register)\(": r"\bget_plugin_registry\(|\btensorrt\.plugin\b",
}


@dataclass(frozen=True)
class Book:
    """A notebook as stored: ``content`` is its JSON, ``size`` its bytes."""

    name: str
    content: dict
    size: int

    @classmethod
    def read(cls, path: Path) -> Book:
        return cls(path.stem, json.loads(path.read_text(encoding="utf-8")), path.stat().st_size)

    def cells(self, kind: str) -> Iterator[tuple[str, dict, str]]:
        """(what to call it, the cell, its source) of every cell of a kind."""
        for number, cell in enumerate(self.content["cells"], 1):
            if cell["cell_type"] == kind:
                source = text_of(cell["source"])
                first = next((line.strip() for line in source.splitlines() if line.strip()), "empty")
                yield f"cell {number} (`{first[:40]}`)", cell, source

    def outputs(self) -> Iterator[tuple[str, dict, dict]]:
        """(what to call the cell, the cell, one of its outputs)."""
        for where, cell, _ in self.cells("code"):
            for output in cell.get("outputs", []):
                yield where, cell, output


def text_of(value: str | list[str]) -> str:
    return value if isinstance(value, str) else "".join(value)


def tags_of(cell: dict) -> list[str]:
    return cell["metadata"].get("tags", [])


def lines_of(source: str) -> int:
    return sum(bool(line.strip()) for line in source.splitlines())


def prose_of(source: str) -> str:
    """Markdown without fenced code, diagrams, math, images and HTML tags."""
    for pattern in (
        r"(?ms)^(```|~~~).*?^\1",
        r"(?s)\$\$.*?\$\$",
        r"\$[^$\n]+\$",
        r"!\[[^\]]*\]\([^)]*\)",
        r"<[^>\n]+>",
    ):
        source = re.sub(pattern, " ", source)
    return source


def headings_of(source: str) -> list[tuple[int, str]]:
    unfenced = re.sub(r"(?ms)^(```|~~~).*?^\1", "", source)
    return [(len(marks), title.strip()) for marks, title in re.findall(r"(?m)^(#{1,6})\s+(.+)$", unfenced)]


def words_of(source: str) -> int:
    return len(re.findall(r"\w[\w'’.,/×-]*", prose_of(source)))


def tree_of(source: str) -> ast.Module:
    """The syntax tree of a cell; magics and shell lines count as the calls IPython makes of them."""
    try:
        return ast.parse(TransformerManager().transform_cell(source))
    except SyntaxError:  # a cell may show a syntax error on purpose
        return ast.Module(body=[], type_ignores=[])


def texts_of(output: dict) -> str:
    """All text a reader or nbval sees of one output."""
    if output["output_type"] == "stream":
        return text_of(output["text"])
    if output["output_type"] == "error":
        return f"{output.get('ename')}: {output.get('evalue')}"
    data = output.get("data", {})
    return "\n".join(text_of(value) for mime, value in data.items() if mime.startswith("text/"))


def the_format_is_45_with_ids(book: Book) -> list[str]:
    form = (book.content.get("nbformat"), book.content.get("nbformat_minor"))
    if form != (4, 5):
        return [f"the notebook has format {form[0]}.{form[1]}; store it as 4.5"]
    ids = Counter(cell.get("id") for cell in book.content["cells"])
    said = [
        f"{count} cells have the id {name!r}; ids are present and unique"
        for name, count in ids.items()
        if not name or count > 1
    ]
    if said:
        return said
    try:
        nbformat.validate(book.content)
    except nbformat.ValidationError as error:
        said.append(f"the notebook is not valid: {str(error).splitlines()[0]}")
    return said


def the_kernel_is_python3(book: Book) -> list[str]:
    kernel = book.content["metadata"].get("kernelspec", {}).get("name")
    return [] if kernel == "python3" else [f"the kernelspec is {kernel!r}; it must be 'python3'"]


def it_opens_with_a_question_and_a_prediction(book: Book) -> list[str]:
    first = book.content["cells"][0] if book.content["cells"] else {"cell_type": "none", "source": ""}
    if first["cell_type"] != "markdown":
        return [f"cell 1 is a {first['cell_type']} cell; it must be Markdown with the title"]
    source = text_of(first["source"])
    wanted = {
        "an H1": any(level == 1 for level, _ in headings_of(source)),
        "a question mark": "?" in prose_of(source),
        "a prediction (the word predict)": "predict" in source.lower(),
    }
    return [f"cell 1 lacks {what}" for what, there in wanted.items() if not there]


def there_is_one_h1(book: Book) -> list[str]:
    titles = [title for _, _, source in book.cells("markdown") for level, title in headings_of(source) if level == 1]
    return [] if len(titles) == 1 else [f"the notebook has {len(titles)} H1 headings {titles}; it must have one"]


def headings_skip_no_level(book: Book) -> list[str]:
    said, before = [], 0
    for where, _, source in book.cells("markdown"):
        for level, title in headings_of(source):
            if before and level > before + 1:
                said.append(f"{where}: '{title}' has level {level} below level {before}")
            before = level
    return said


def it_closes_with_what_you_found(book: Book) -> list[str]:
    cells = list(book.cells("markdown"))
    if cells and "what you found" in [title.lower().rstrip(".:") for _, title in headings_of(cells[-1][2])]:
        return []
    return [f"the last Markdown cell, {cells[-1][0] if cells else 'missing'}, is not headed 'What you found'"]


def code_cells_are_small(book: Book) -> list[str]:
    counts = [(lines_of(source), where) for where, _, source in book.cells("code")]
    if not counts:
        return ["the notebook has no code cell"]
    said = [f"{where} has {count} code lines; 25 at most" for count, where in counts if count > 25]
    sizes = sorted(count for count, _ in counts)
    if statistics.median(sizes) > 8:
        said.append(f"the median code cell has {statistics.median(sizes):g} lines; 8 at most")
    p90 = sizes[math.ceil(0.9 * len(sizes)) - 1]
    if p90 > 20:
        said.append(f"the 90th percentile of code cells is {p90} lines; 20 at most")
    return said


def setup_is_short(book: Book) -> list[str]:
    return [
        f"{where} is the first code cell and has {lines_of(source)} lines; 12 at most"
        for where, _, source in list(book.cells("code"))[:1]
        if lines_of(source) > 12  # parts of rooms take an import line each
    ]


def code_does_not_run_on_without_prose(book: Book) -> list[str]:
    said, run = [], 0
    for number, cell in enumerate(book.content["cells"], 1):
        run = run + 1 if cell["cell_type"] == "code" else 0
        if run == 4:
            said.append(f"cell {number} is the fourth code cell in a row; say something after three")
    return said


def prose_has_the_right_length(book: Book) -> list[str]:
    # the first cell's sentence about the outputs is kept by `write_manifest`, not by the author
    counts = [(words_of(editions.bare(source)), where) for where, _, source in book.cells("markdown")]
    said = [f"{where} has {count} words; 120 at most" for count, where in counts if count > 120]
    median = statistics.median(count for count, _ in counts) if counts else 0
    if not 20 <= median <= 75:
        said.append(f"the median Markdown cell has {median:g} words; between 20 and 75")
    return said


def every_cell_was_run_in_order(book: Book) -> list[str]:
    return [
        f"{where} has execution count {cell.get('execution_count')}; a run from the top gives {wanted}"
        for wanted, (where, cell, _) in enumerate(book.cells("code"), 1)
        if cell.get("execution_count") != wanted
    ]


def errors_are_meant(book: Book) -> list[str]:
    return [
        f"{where} stores {output.get('ename')}; tag an intended error raises-exception"
        for where, cell, output in book.outputs()
        if output["output_type"] == "error" and "raises-exception" not in tags_of(cell)
    ]


def outputs_are_text_and_png(book: Book) -> list[str]:
    allowed = {"text/plain", "text/html", "text/markdown", "text/latex", "image/png"}
    said = []
    for where, _, output in book.outputs():
        data = output.get("data", {})
        for mime in set(data) - allowed:
            plain = text_of(data.get("text/plain", ""))
            if "widget-view" in mime and plain.strip() and not re.match(r"^[\w.]+\(.*", plain):
                continue  # a progress bar whose text a reader without the widget sees
            said.append(f"{where} stores {mime}; store text or PNG")
        if re.search(r"(?i)<(?:script|svg|iframe)\b|\bon(?:click|load)=", text_of(data.get("text/html", ""))):
            said.append(f"{where} stores HTML with a script, SVG or frame; store text or PNG")
    return said


def files_and_pictures_are_small(book: Book) -> list[str]:
    said = [] if book.size < 1_000_000 else [f"the notebook has {book.size / 1e6:.2f} MB; less than 1 MB"]
    for where, _, output in book.outputs():
        if "image/png" in output.get("data", {}):
            size = len(base64.b64decode(text_of(output["data"]["image/png"])))
            if size >= 100_000:
                said.append(f"{where} stores a PNG of {size / 1000:.0f} KB; less than 100 KB")
    return said


def pictures_come_with_text(book: Book) -> list[str]:
    said = []
    for where, cell, output in book.outputs():
        data, metadata = output.get("data", {}), output.get("metadata", {})
        if "image/png" not in data:
            continue
        alt = metadata.get("alt") or metadata.get("image/png", {}).get("alt")
        beside = [texts_of(other) for other in cell["outputs"] if "image/png" not in other.get("data", {})]
        plain = [text for text in (text_of(data.get("text/plain", "")), *beside) if not re.match(r"\s*<.*>\s*$", text)]
        if not alt and not any(len(text.split()) >= 3 for text in plain):
            said.append(f"{where} stores a picture without a sentence that says what it shows")
    return said


def a_third_of_the_code_is_compared(book: Book) -> list[str]:
    cells = list(book.cells("code"))
    compared = [(where, cell) for where, cell, _ in cells if COMPARED in tags_of(cell)]
    said = []
    if 3 * len(compared) < len(cells):
        said.append(f"{len(compared)} of {len(cells)} code cells carry {COMPARED}; at least a third must")
    for where, cell in compared:
        if not any(texts_of(output).strip() for output in cell.get("outputs", [])):
            said.append(f"{where} carries {COMPARED} and stores no text to compare")
        against = {"nbval-skip", "nbval-ignore-output"} & set(tags_of(cell))
        if against:
            said.append(f"{where} carries {COMPARED} and {', '.join(sorted(against))}; nbval would not compare it")
    return said


def compared_text_holds_on_every_machine(book: Book) -> list[str]:
    return [
        f"{where} is compared and stores {what}: {found.group()!r}"
        for where, cell, output in book.outputs()
        if COMPARED in tags_of(cell)
        for pattern, what in CHANGING.items()
        if (found := re.search(pattern, texts_of(output)))
    ]


def outputs_name_no_machine(book: Book) -> list[str]:
    host = socket.gethostname()
    own = {rf"\b{re.escape(host)}\b": "this machine's name"} if len(host) > 5 and host != "localhost" else {}
    patterns = {**MACHINE, **own}
    return [
        f"{where} stores {what}: {found.group()!r}"
        for where, _, output in book.outputs()
        for pattern, what in patterns.items()
        if (found := re.search(pattern, texts_of(output)))
    ]


def code_stays_in_its_lane(book: Book) -> list[str]:
    said = [
        f"{where} {why}: {found.group()!r}"
        for where, _, source in book.cells("code")
        for pattern, why in FORBIDDEN.items()
        if (found := re.search(pattern, source))
    ]
    for where, _, source in book.cells("code"):
        for node in ast.walk(tree_of(source)):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                if not any(
                    keyword.arg == "weights_only" and getattr(keyword.value, "value", 0) is True
                    for keyword in node.keywords
                ):
                    said.append(f"{where} calls torch.load without weights_only=True")
    return said


def imports_are_modules(book: Book) -> list[str]:
    said = []
    for where, _, source in book.cells("code"):
        for node in ast.walk(tree_of(source)):
            if not isinstance(node, ast.ImportFrom) or (node.module or "").partition(".")[0] != "labsupport":
                continue
            for name in (alias.name for alias in node.names):
                module = Path(__file__).parents[1].joinpath(*node.module.split("."), name)
                exercise = node.module == "labsupport.exercises" and re.fullmatch(r"lab\w+", name)
                part = node.module.count(".") == 1 and node.module != "labsupport.exercises"
                room = (node.module == "labsupport" or part) and (module.with_suffix(".py").exists() or module.is_dir())
                if not exercise and not room:
                    said.append(
                        f"{where} imports {name} from {node.module}; import the module, so that the reader "
                        "sees at each call where to look"
                    )
    return said


def markdown_embeds_no_picture(book: Book) -> list[str]:
    return [
        f"{where} embeds a picture; put it in a file or draw it"
        for where, cell, source in book.cells("markdown")
        if "data:image" in source or cell.get("attachments")
    ]


def pictures_in_markdown_are_described(book: Book) -> list[str]:
    said = []
    for where, _, source in book.cells("markdown"):
        said += [f"{where}: the image {link} has no alt text" for link in re.findall(r"!\[\s*\]\(([^)]*)\)", source)]
        said += [
            f"{where}: {tag} has no alt text"
            for tag in re.findall(r"<img\b[^>]*>", source)
            if not re.search(r"\balt=([\"'])(?!\s*\1)", tag)
        ]
        for diagram in re.findall(r"(?ms)^```mermaid\s*$(.*?)^```", source):
            said += [
                f"{where}: the Mermaid diagram has no {what}"
                for what in ("accTitle", "accDescr")
                if not re.search(rf"(?m)^\s*{what}\s*[:{{]\s*\S", diagram)
            ]
    return said


def there_are_three_exercises(book: Book) -> list[str]:
    asked = {match for _, _, source in book.cells("code") for match in re.findall(r"([\w.]+)\.check\(", source)}
    return [] if len(asked) >= 3 else [f"the notebook checks {len(asked)} exercises {sorted(asked)}; at least 3"]


def defined_in(source: str) -> list[str]:
    return [
        node.name
        for node in tree_of(source).body
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
    ]


def no_name_is_defined_twice(books: list[Book], package: dict[str, str]) -> list[str]:
    """Across notebooks, and against ``package`` (file → source of ``labsupport``)."""
    owner = {name: file for file, source in package.items() for name in defined_in(source)}
    said = []
    for book in books:
        here: set[str] = set()
        for where, _, source in book.cells("code"):
            for name in set(defined_in(source)):
                if name in owner and name not in here:
                    said.append(f"{book.name}, {where} defines {name}, which {owner[name]} has already")
                here.add(name)
        owner.update({name: book.name for name in here})
    return said


def no_helper_comes_before_its_api(books: list[Book], table: dict[str, str] | None = None) -> list[str]:
    """Across notebooks in the order they are learned: the first cell with a helper follows a cell with its API."""
    said, shown = [], set()
    table = API_BEFORE_HELPER if table is None else table
    for book in sorted(books, key=lambda book: book.name):
        for where, _, source in book.cells("code"):
            shown |= {helper for helper, api in table.items() if re.search(api, source)}
            for helper in table.keys() - shown:
                if found := re.search(helper, source):
                    said.append(
                        f"{book.name}, {where} uses {found.group()!r}, and no cell has shown {table[helper]} yet"
                    )
                    shown.add(helper)  # said once
    return said


RULES = (
    the_format_is_45_with_ids,
    the_kernel_is_python3,
    it_opens_with_a_question_and_a_prediction,
    there_is_one_h1,
    headings_skip_no_level,
    it_closes_with_what_you_found,
    code_cells_are_small,
    setup_is_short,
    code_does_not_run_on_without_prose,
    prose_has_the_right_length,
    every_cell_was_run_in_order,
    errors_are_meant,
    outputs_are_text_and_png,
    files_and_pictures_are_small,
    pictures_come_with_text,
    a_third_of_the_code_is_compared,
    compared_text_holds_on_every_machine,
    outputs_name_no_machine,
    code_stays_in_its_lane,
    imports_are_modules,
    markdown_embeds_no_picture,
    pictures_in_markdown_are_described,
    there_are_three_exercises,
)
