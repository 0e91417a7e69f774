// Which TensorRT's headers this library was compiled with: asked before the library is handed to another one.
#include <NvInferVersion.h>

#include "launch.h"

PLUGIN_EXPORT int tensorrtMajor() { return NV_TENSORRT_MAJOR; }
PLUGIN_EXPORT int tensorrtMinor() { return NV_TENSORRT_MINOR; }
