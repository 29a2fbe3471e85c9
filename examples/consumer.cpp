// Runs one batch through an engine that trtbatch built, and prints the best class of every sample.
//
//     consumer ENGINE BATCH SAMPLES.bin
//
// SAMPLES.bin is BATCH samples of the engine's one input, as raw float32. Takes TensorRT 8.6, 10 and 11.
#include <NvInfer.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <iostream>
#include <iterator>
#include <memory>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

using nlohmann::json;

class Logger : public nvinfer1::ILogger {
    void log(Severity severity, const char* message) noexcept override {
        if (severity <= Severity::kWARNING) std::cerr << message << '\n';
    }
};

void require(bool right, const std::string& problem) {
    if (!right) throw std::runtime_error(problem);
}

void check(cudaError_t status) { require(status == cudaSuccess, cudaGetErrorString(status)); }

std::vector<char> read(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    require(file.good(), "can't read " + path);
    return {std::istreambuf_iterator<char>(file), {}};
}

// The profile of a batch, as trtbatch itself looks it up: a measured batch has its winner, one between two measured
// ones that of the next larger, else of the next smaller; without measurements it is the one whose opt is nearest.
int profileOf(const json& sidecar, int batch) {
    const json& engine = sidecar.at("engine");
    const json& profiles = engine.at("profiles");
    auto holds = [&](int index) {
        const json& profile = profiles.at(index);
        return profile.at("min").get<int>() <= batch && batch <= profile.at("max").get<int>();
    };
    std::vector<json> table = engine.value("table", std::vector<json>{});
    std::sort(table.begin(), table.end(), [](const json& a, const json& b) { return a.at("batch") < b.at("batch"); });
    auto larger = std::find_if(table.begin(), table.end(), [&](const json& row) { return row.at("batch") >= batch; });
    if (larger != table.end() && holds(larger->at("profile"))) return larger->at("profile");
    if (larger != table.begin() && holds(std::prev(larger)->at("profile"))) return std::prev(larger)->at("profile");
    int nearest = -1;
    auto rank = [&](int index) {
        const json& profile = profiles.at(index);
        return std::make_pair(std::abs(profile.at("opt").get<int>() - batch), profile.at("max").get<int>());
    };
    for (int index = 0; index < static_cast<int>(profiles.size()); ++index)
        if (holds(index) && (nearest < 0 || rank(index) < rank(nearest))) nearest = index;
    require(nearest >= 0, "batch " + std::to_string(batch) + " is outside every profile");
    return nearest;
}

std::int64_t volume(const nvinfer1::Dims& shape) {
    std::int64_t count = 1;
    for (int axis = 0; axis < shape.nbDims; ++axis) count *= shape.d[axis];
    return count;
}

// Memory on the GPU, freed with its owner.
struct Buffer {
    explicit Buffer(std::size_t bytes) { check(cudaMalloc(&address, bytes)); }
    ~Buffer() { cudaFree(address); }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;
    void* address = nullptr;
};

void run(const std::string& path, int batch, const std::string& samples) {
    const json sidecar = json::parse(read(path + ".json"));
    const std::vector<char> plan = read(path), input = read(samples);
    require(sidecar.at("inputs").size() == 1, "this program feeds one input");
    const json& in = sidecar.at("inputs").at(0);
    const json& out = sidecar.at("outputs").at(0);
    for (const json& tensor : {in, out})
        require(tensor.at("dtype") == "float32" && tensor.at("batch_axis") == 0, "this program knows float32 batches");
    const std::string inName = in.at("name"), outName = out.at("name");

    Logger logger;
    std::unique_ptr<nvinfer1::IRuntime> runtime(nvinfer1::createInferRuntime(logger));
    require(runtime != nullptr, "TensorRT didn't start");
    std::unique_ptr<nvinfer1::ICudaEngine> engine(runtime->deserializeCudaEngine(plan.data(), plan.size()));
    require(engine != nullptr, path + " was built by another TensorRT, or for another GPU");
    std::unique_ptr<nvinfer1::IExecutionContext> context(engine->createExecutionContext());
    require(context != nullptr, "no execution context");
    cudaStream_t stream;
    check(cudaStreamCreate(&stream));

    const int profile = profileOf(sidecar, batch);
    require(context->setOptimizationProfileAsync(profile, stream), "the profile can't be selected");
    check(cudaStreamSynchronize(stream));  // shapes are set under the new profile
    nvinfer1::Dims shape = engine->getTensorShape(inName.c_str());
    shape.d[0] = batch;
    require(context->setInputShape(inName.c_str(), shape), "the profile doesn't hold this shape");
    require(input.size() == volume(shape) * sizeof(float), samples + " doesn't hold exactly that many samples");

    std::vector<float> scores(volume(context->getTensorShape(outName.c_str())));
    Buffer up(input.size()), down(scores.size() * sizeof(float));
    std::vector<std::unique_ptr<Buffer>> others;  // every output needs an address, used or not
    for (int index = 0; index < engine->getNbIOTensors(); ++index) {
        const char* name = engine->getIOTensorName(index);
        void* address = name == inName ? up.address : name == outName ? down.address : nullptr;
        if (address == nullptr) {
            others.push_back(std::make_unique<Buffer>(8 * volume(context->getTensorShape(name))));
            address = others.back()->address;
        }
        require(context->setTensorAddress(name, address), std::string("no address for ") + name);
    }

    check(cudaMemcpyAsync(up.address, input.data(), input.size(), cudaMemcpyHostToDevice, stream));
    require(context->enqueueV3(stream), "the batch can't be enqueued");
    check(cudaMemcpyAsync(scores.data(), down.address, scores.size() * sizeof(float), cudaMemcpyDeviceToHost, stream));
    check(cudaStreamSynchronize(stream));
    check(cudaStreamDestroy(stream));

    const json classes = sidecar.value("classes", json());
    const std::size_t width = scores.size() / batch;
    std::cerr << "batch " << batch << " on profile " << profile << '\n';
    for (int row = 0; row < batch; ++row) {
        const auto first = scores.begin() + row * width;
        const auto best = std::max_element(first, first + width) - first;
        std::cout << row << ' ' << (classes.is_array() ? classes.at(best).get<std::string>() : std::to_string(best))
                  << '\n';
    }
}

int main(int count, char** words) {
    if (count != 4 || std::atoi(words[2]) < 1) {
        std::cerr << "usage: consumer ENGINE BATCH SAMPLES.bin\n";
        return 2;
    }
    try {
        run(words[1], std::atoi(words[2]), words[3]);
    } catch (const std::exception& error) {
        std::cerr << "error: " << error.what() << '\n';
        return 1;
    }
}
