// The operator as an IPluginV3, the plugin of TensorRT 10 and 11.
#include <NvInfer.h>

#include <cstring>
#include <cstdint>

#include "launch.h"

using namespace nvinfer1;

namespace {

constexpr char const* kNAME{"GatedRmsNorm"};  // the parser looks for a plugin named as the node's op_type
constexpr char const* kVERSION{"1"};
constexpr char const* kNAMESPACE{""};

// One class, three capabilities: what it is (Core), what the builder asks (Build), what the engine calls (Runtime).
class GatedRmsNorm final : public IPluginV3, public IPluginV3OneCore, public IPluginV3OneBuild, public IPluginV3OneRuntime {
public:
    explicit GatedRmsNorm(float epsilon) : mEpsilon{epsilon} {
        mFields.nbFields = 1;
        mFields.fields = &mField;
    }
    GatedRmsNorm(GatedRmsNorm const& other) : GatedRmsNorm{other.mEpsilon} {}

    IPluginCapability* getCapabilityInterface(PluginCapabilityType type) noexcept override {
        if (type == PluginCapabilityType::kCORE) return static_cast<IPluginV3OneCore*>(this);
        if (type == PluginCapabilityType::kBUILD) return static_cast<IPluginV3OneBuild*>(this);
        return static_cast<IPluginV3OneRuntime*>(this);
    }
    IPluginV3* clone() noexcept override { return new GatedRmsNorm{*this}; }

    // --- Core ------------------------------------------------------------------------------------------------
    char const* getPluginName() const noexcept override { return kNAME; }
    char const* getPluginVersion() const noexcept override { return kVERSION; }
    char const* getPluginNamespace() const noexcept override { return kNAMESPACE; }

    // --- Build: shapes, types, layouts ---------------------------------------------------------------------------
    int32_t getNbOutputs() const noexcept override { return 1; }

    int32_t getOutputDataTypes(DataType* outputs, int32_t nbOutputs, DataType const* inputs, int32_t nbInputs) const noexcept override {
        if (nbOutputs != 1 || nbInputs != 3) return 1;
        outputs[0] = inputs[0];
        return 0;
    }

    int32_t getOutputShapes(DimsExprs const* inputs, int32_t nbInputs, DimsExprs const*, int32_t, DimsExprs* outputs,
                            int32_t nbOutputs, IExprBuilder&) noexcept override {
        if (nbOutputs != 1 || nbInputs != 3) return 1;
        outputs[0] = inputs[0];  // y is shaped as x
        return 0;
    }

    // Asked for x, gate, weight and y in turn; what stands behind `position` is not settled yet.
    bool supportsFormatCombination(int32_t position, DynamicPluginTensorDesc const* tensors, int32_t nbInputs,
                                   int32_t nbOutputs) noexcept override {
        if (nbInputs != 3 || nbOutputs != 1 || tensors[position].desc.format != TensorFormat::kLINEAR) return false;
        DataType const type = tensors[position].desc.type;
        if (position > 0) return type == tensors[0].desc.type;
        return type == DataType::kFLOAT || type == DataType::kHALF;
    }

    int32_t configurePlugin(DynamicPluginTensorDesc const*, int32_t, DynamicPluginTensorDesc const*, int32_t) noexcept override {
        return 0;
    }

    // --- Runtime -------------------------------------------------------------------------------------------------
    int32_t onShapeChange(PluginTensorDesc const*, int32_t, PluginTensorDesc const*, int32_t) noexcept override { return 0; }

    int32_t enqueue(PluginTensorDesc const* inputs, PluginTensorDesc const*, void const* const* in, void* const* out,
                    void*, cudaStream_t stream) noexcept override {
        Dims const& shape = inputs[0].dims;
        int64_t rows = 1;  // Dims hold 64 bits from TensorRT 10 on
        for (int32_t axis = 0; axis + 1 < shape.nbDims; ++axis) rows *= shape.d[axis];
        int64_t const columns = shape.d[shape.nbDims - 1];
        if (rows > INT32_MAX || columns > INT32_MAX) return 1;
        return launchGatedRmsNorm(in[0], in[1], in[2], out[0], static_cast<int32_t>(rows), static_cast<int32_t>(columns),
                                  mEpsilon, inputs[0].type == DataType::kHALF, stream);
    }

    IPluginV3* attachToContext(IPluginResourceContext*) noexcept override { return clone(); }

    // What the engine file keeps; the creator gets it back as fields.
    PluginFieldCollection const* getFieldsToSerialize() noexcept override { return &mFields; }

private:
    float mEpsilon;
    PluginField mField{"epsilon", &mEpsilon, PluginFieldType::kFLOAT32, 1};
    PluginFieldCollection mFields{};
};

class Creator final : public IPluginCreatorV3One {
public:
    Creator() {
        mFields.nbFields = 1;
        mFields.fields = &mField;
    }

    char const* getPluginName() const noexcept override { return kNAME; }
    char const* getPluginVersion() const noexcept override { return kVERSION; }
    char const* getPluginNamespace() const noexcept override { return kNAMESPACE; }
    PluginFieldCollection const* getFieldNames() noexcept override { return &mFields; }

    // For the node's attributes while building (phase kBUILD) and for the serialized fields at runtime (kRUNTIME).
    IPluginV3* createPlugin(char const*, PluginFieldCollection const* given, TensorRTPhase) noexcept override {
        float epsilon = 1e-5F;
        for (int32_t i = 0; i < given->nbFields; ++i) {
            PluginField const& field = given->fields[i];
            if (std::strcmp(field.name, "epsilon") == 0 && field.type == PluginFieldType::kFLOAT32 && field.length == 1)
                epsilon = *static_cast<float const*>(field.data);
        }
        return new GatedRmsNorm{epsilon};
    }

private:
    PluginField mField{"epsilon", nullptr, PluginFieldType::kFLOAT32, 1};
    PluginFieldCollection mFields{};
};

Creator gCreator;
IPluginCreatorInterface* const gCreators[]{&gCreator};

}  // namespace

// IPluginRegistry::loadLibrary looks for these two names; nothing of TensorRT has to be linked.
PLUGIN_EXPORT void setLoggerFinder(ILoggerFinder*) {}

PLUGIN_EXPORT IPluginCreatorInterface* const* getCreators(int32_t& count) {
    count = 1;
    return gCreators;
}
