// The operator as an IPluginV2DynamicExt, the plugin of TensorRT 8.6 (deprecated since 10.0, still there in 11).
#include <NvInfer.h>

#include <cstring>
#include <string>

#include "launch.h"

using namespace nvinfer1;

namespace {

constexpr char const* kNAME{"GatedRmsNorm"};  // the parser looks for a plugin named as the node's op_type
constexpr char const* kVERSION{"1"};

class GatedRmsNorm final : public IPluginV2DynamicExt {
public:
    explicit GatedRmsNorm(float epsilon) : mEpsilon{epsilon} {}

    // --- what is computed, of which shape and type ---------------------------------------------------------
    int32_t getNbOutputs() const noexcept override { return 1; }

    DimsExprs getOutputDimensions(int32_t, DimsExprs const* inputs, int32_t, IExprBuilder&) noexcept override {
        return inputs[0];  // y is shaped as x
    }

    DataType getOutputDataType(int32_t, DataType const* inputTypes, int32_t) const noexcept override {
        return inputTypes[0];
    }

    // Asked for x, gate, weight and y in turn; what stands behind `position` is not settled yet.
    bool supportsFormatCombination(int32_t position, PluginTensorDesc const* tensors, int32_t nbInputs,
                                   int32_t nbOutputs) noexcept override {
        if (nbInputs != 3 || nbOutputs != 1 || tensors[position].format != TensorFormat::kLINEAR) return false;
        DataType const type = tensors[position].type;
        if (position > 0) return type == tensors[0].type;
        return type == DataType::kFLOAT || type == DataType::kHALF;
    }

    void configurePlugin(DynamicPluginTensorDesc const*, int32_t, DynamicPluginTensorDesc const*, int32_t) noexcept override {}

    size_t getWorkspaceSize(PluginTensorDesc const*, int32_t, PluginTensorDesc const*, int32_t) const noexcept override {
        return 0;
    }

    int32_t enqueue(PluginTensorDesc const* inputs, PluginTensorDesc const*, void const* const* in, void* const* out,
                    void*, cudaStream_t stream) noexcept override {
        Dims const& shape = inputs[0].dims;
        int32_t rows = 1;
        for (int32_t axis = 0; axis + 1 < shape.nbDims; ++axis) rows *= shape.d[axis];
        return launchGatedRmsNorm(in[0], in[1], in[2], out[0], rows, shape.d[shape.nbDims - 1], mEpsilon,
                                  inputs[0].type == DataType::kHALF, stream);
    }

    // --- what the engine file keeps ------------------------------------------------------------------------
    size_t getSerializationSize() const noexcept override { return sizeof(mEpsilon); }
    void serialize(void* buffer) const noexcept override { std::memcpy(buffer, &mEpsilon, sizeof(mEpsilon)); }

    // --- who it is, how it is copied and let go ------------------------------------------------------------
    char const* getPluginType() const noexcept override { return kNAME; }
    char const* getPluginVersion() const noexcept override { return kVERSION; }
    void setPluginNamespace(char const* name) noexcept override { mNamespace = name; }
    char const* getPluginNamespace() const noexcept override { return mNamespace.c_str(); }
    int32_t initialize() noexcept override { return 0; }
    void terminate() noexcept override {}
    void destroy() noexcept override { delete this; }

    IPluginV2DynamicExt* clone() const noexcept override {
        auto* copy = new GatedRmsNorm{mEpsilon};
        copy->setPluginNamespace(mNamespace.c_str());
        return copy;
    }

private:
    float mEpsilon;
    std::string mNamespace;
};

class Creator final : public IPluginCreator {
public:
    Creator() { mFields.nbFields = 1, mFields.fields = &mField; }

    char const* getPluginName() const noexcept override { return kNAME; }
    char const* getPluginVersion() const noexcept override { return kVERSION; }
    PluginFieldCollection const* getFieldNames() noexcept override { return &mFields; }
    void setPluginNamespace(char const* name) noexcept override { mNamespace = name; }
    char const* getPluginNamespace() const noexcept override { return mNamespace.c_str(); }

    IPluginV2* createPlugin(char const*, PluginFieldCollection const* given) noexcept override {
        float epsilon = 1e-5F;
        for (int32_t i = 0; i < given->nbFields; ++i) {
            PluginField const& field = given->fields[i];
            if (std::strcmp(field.name, "epsilon") == 0 && field.type == PluginFieldType::kFLOAT32 && field.length == 1)
                epsilon = *static_cast<float const*>(field.data);
        }
        return named(epsilon);
    }

    IPluginV2* deserializePlugin(char const*, void const* data, size_t length) noexcept override {
        float epsilon;
        if (length != sizeof(epsilon)) return nullptr;  // written by something else
        std::memcpy(&epsilon, data, sizeof(epsilon));
        return named(epsilon);
    }

private:
    IPluginV2* named(float epsilon) {
        auto* plugin = new GatedRmsNorm{epsilon};
        plugin->setPluginNamespace(mNamespace.c_str());
        return plugin;
    }

    PluginField mField{"epsilon", nullptr, PluginFieldType::kFLOAT32, 1};
    PluginFieldCollection mFields{};
    std::string mNamespace;
};

Creator gCreator;
IPluginCreator* const gCreators[]{&gCreator};

}  // namespace

// IPluginRegistry::loadLibrary looks for these two names; nothing of TensorRT has to be linked.
PLUGIN_EXPORT void setLoggerFinder(ILoggerFinder*) {}

PLUGIN_EXPORT IPluginCreator* const* getPluginCreators(int32_t& count) {
    count = 1;
    return gCreators;
}
