// Opens a bundle from C++: checks every file against the manifest, runs one artifact on OpenVINO over the golden
// images, and compares its logits with the eager network's, within the limits that the manifest gives. See
// docs/bundle.md.
//
//   open_bundle BUNDLE [ARTIFACT]        ARTIFACT is int8.cpu by default
//
// Exit status: 0 within tolerance, 1 outside, 2 when the bundle cannot be read or run.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <openvino/openvino.hpp>
#include <set>

#include "json.hpp"
#include "npz.hpp"
#include "sha256.hpp"

namespace fs = std::filesystem;

constexpr std::uintmax_t max_manifest = 16u << 20;

[[noreturn]] void refuse(const std::string& what) { throw std::runtime_error(what); }

// Reads a regular file inside the bundle, wherever links lead.
std::string read(const fs::path& bundle, const std::string& name, std::uintmax_t limit) {
    const fs::path root = fs::canonical(bundle), path = fs::canonical(root / name);
    if (std::mismatch(root.begin(), root.end(), path.begin(), path.end()).first != root.end())
        refuse("'" + name + "' leads outside the bundle");
    if (!fs::is_regular_file(path)) refuse("'" + name + "' is not a regular file");
    if (fs::file_size(path) > limit) refuse("'" + name + "' is larger than the manifest says");
    std::ifstream stream(path, std::ios::binary);
    std::string data{std::istreambuf_iterator<char>(stream), {}};
    if (!stream && !stream.eof()) refuse("'" + name + "' cannot be read");
    return data;
}

// A file's path has parts of letters, digits and ._+-, none of which begins with another character or ends in a dot.
void check_path(const std::string& file) {
    std::string part;
    for (char c : file + "/") {
        if (c != '/') {
            part += c;
            continue;
        }
        const bool plain = std::all_of(part.begin(), part.end(), [](unsigned char l) {
            return l < 128 && (std::isalnum(l) || std::strchr("._+-", l));
        });
        if (part.empty() || !plain || std::strchr(".+-", part.front()) || part.back() == '.')
            refuse("'" + file + "' is no path of a bundle");
        part.clear();
    }
}

// The bytes of what the manifest describes: of that size and hash, or refused.
std::string read_entry(const fs::path& bundle, const Json& entry) {
    const std::string& file = entry["file"].text();
    check_path(file);
    std::string data = read(bundle, file, entry["bytes"].count());
    if (data.size() != entry["bytes"].count())
        refuse("'" + file + "' has " + std::to_string(data.size()) + " bytes, the manifest says otherwise");
    if (sha256(data) != entry["sha256"].text()) refuse("'" + file + "' has another SHA-256 than the manifest says");
    return data;
}

// A reader refuses keys that it does not know: a typing error must not become an option that is ignored.
void check_keys(const Json& object, const std::string& what, const std::set<std::string>& known) {
    for (const auto& [key, value] : object.members())
        if (!known.count(key)) refuse("manifest.json has the unknown key '" + key + "' in " + what);
}

Json read_manifest(const fs::path& bundle) {
    const Json manifest = Json::parse(read(bundle, "manifest.json", max_manifest));
    if (manifest["schema"].number() != 1)
        refuse("manifest.json has schema " + std::to_string(manifest["schema"].number()) + ", this reader knows 1");
    check_keys(manifest, "the manifest",
               {"schema", "model", "graph", "input", "outputs", "batch", "preprocessing", "labels", "tolerances",
                "artifacts", "golden", "modules", "provenance", "files"});
    check_keys(manifest["preprocessing"], "preprocessing",
               {"resize", "crop", "interpolation", "mean", "std", "in_graph"});
    check_keys(manifest["golden"], "golden",
               {"file", "bytes", "sha256", "count", "source", "stages", "outputs", "sample_bytes"});
    for (const Json& artifact : manifest["artifacts"].items())
        check_keys(artifact, "an artifact",
                   {"name", "file", "kind", "precision", "target", "bytes", "sha256", "excluded", "engine", "parity",
                    "refusal"});
    return manifest;
}

// What the input tensor takes: raw bytes where the graph normalizes, else (value / 255 - mean) / std in NCHW.
ov::Tensor make_input(const Json& manifest, const std::vector<std::uint8_t>& images, const ov::Shape& nhwc) {
    const Json& steps = manifest["preprocessing"];
    if (const Json* in_graph = steps.find("in_graph"); in_graph && in_graph->flag()) {
        ov::Tensor tensor(ov::element::u8, nhwc);
        std::copy(images.begin(), images.end(), tensor.data<std::uint8_t>());
        return tensor;
    }
    const std::size_t height = nhwc[1], width = nhwc[2], channels = nhwc[3], area = height * width;
    ov::Tensor tensor(ov::element::f32, {nhwc[0], channels, height, width});
    auto* out = tensor.data<float>();
    for (std::size_t image = 0; image < nhwc[0]; ++image)
        for (std::size_t c = 0; c < channels; ++c) {
            const float mean = static_cast<float>(steps["mean"].items().at(c).number()),
                        std = static_cast<float>(steps["std"].items().at(c).number());
            for (std::size_t pixel = 0; pixel < area; ++pixel)
                *out++ = (static_cast<float>(images[(image * area + pixel) * channels + c]) / 255.0F - mean) / std;
        }
    return tensor;
}

struct Figures {
    double relative_error, centered_cosine, top1_agreement;
};

Figures compare(const std::vector<float>& found, const std::vector<float>& reference, std::size_t rows,
                std::size_t classes) {
    std::vector<double> mean(classes);
    for (std::size_t i = 0; i < reference.size(); ++i) mean[i % classes] += reference[i] / static_cast<double>(rows);
    double noise = 0, signal = 0, dot = 0, one = 0, other = 0;
    std::size_t same = 0;
    for (std::size_t i = 0; i < reference.size(); ++i) {
        const double a = found[i], b = reference[i], m = mean[i % classes];
        noise += (a - b) * (a - b), signal += b * b;
        dot += (a - m) * (b - m), one += (a - m) * (a - m), other += (b - m) * (b - m);
    }
    for (std::size_t row = 0; row < rows; ++row) {
        const auto first = [&](const std::vector<float>& logits) {
            auto begin = logits.begin() + static_cast<std::ptrdiff_t>(row * classes);
            return std::max_element(begin, begin + static_cast<std::ptrdiff_t>(classes)) - begin;
        };
        same += first(found) == first(reference);
    }
    return {std::sqrt(noise / signal), dot / std::sqrt(one * other),
            static_cast<double>(same) / static_cast<double>(rows)};
}

int run(const fs::path& bundle, const std::string& wanted) {
    const Json manifest = read_manifest(bundle);
    const Json* chosen = nullptr;
    std::string graph;
    std::size_t files = 0;
    for (const Json& artifact : manifest["artifacts"].items()) {
        std::string data = read_entry(bundle, artifact);
        if (artifact["name"].text() == wanted) chosen = &artifact, graph = std::move(data);
        ++files;
    }
    if (const Json* others = manifest.find("files"))
        for (const Json& file : others->items()) read_entry(bundle, file), ++files;
    const std::string archive = read_entry(bundle, manifest["golden"]);
    std::printf("%zu files, every hash as the manifest says\n", files + 1);
    if (chosen == nullptr) refuse("the bundle has no artifact '" + wanted + "'");
    if ((*chosen)["kind"].text() != "onnx") refuse("'" + wanted + "' is not an ONNX artifact");

    const std::size_t count = manifest["golden"]["count"].count(), classes = manifest["model"]["num_classes"].count();
    const Json* crop = manifest["preprocessing"].find("crop");
    const bool square = crop == nullptr || crop->kind() == Json::Kind::number;
    const std::size_t side = crop == nullptr ? 224 : square ? crop->count() : 0;
    const std::size_t height = square ? side : crop->items().at(0).count(),
                      width = square ? side : crop->items().at(1).count();
    const ov::Shape nhwc = {count, height, width, manifest["preprocessing"]["mean"].items().size()};
    const Npz golden(archive);
    const auto images = golden.array<std::uint8_t>("images", "|u1", nhwc);
    const auto eager = golden.array<float>("logits.eager", "<f4", {count, classes});

    // The bytes that were hashed are the bytes that are parsed. Left alone, OpenVINO would compute fp32 graphs in bf16.
    ov::Core core;
    auto compiled = core.compile_model(core.read_model(graph, ov::Tensor()), "CPU",
                                       ov::hint::inference_precision(ov::element::f32));
    auto request = compiled.create_infer_request();
    request.set_tensor(manifest["input"]["name"].text(), make_input(manifest, images, nhwc));
    request.infer();
    const ov::Tensor output = request.get_tensor(manifest["outputs"].items().at(0)["name"].text());
    if (output.get_shape() != ov::Shape{count, classes} || output.get_element_type() != ov::element::f32)
        refuse("the artifact returned other logits than the manifest says");
    const std::vector<float> logits(output.data<float>(), output.data<float>() + output.get_size());

    const Figures found = compare(logits, eager, count, classes);
    const Json& limits = manifest["tolerances"][(*chosen)["precision"].text()];
    bool within = true;
    const auto hold = [&](const char* name, double value, bool at_most) {
        const Json* limit = limits.find(name);  // none is null
        const bool held = limit == nullptr || (at_most ? value <= limit->number() : value >= limit->number());
        within = within && held;
        std::printf("%-16s %.6g", name, value);
        if (limit != nullptr)
            std::printf("   (%s %g)%s", at_most ? "at most" : "at least", limit->number(), held ? "" : "   OUTSIDE");
        std::printf("\n");
    };
    std::printf("%s on OpenVINO %s, %zu golden images, against the eager network:\n", wanted.c_str(),
                ov::get_openvino_version().buildNumber, count);
    hold("relative_error", found.relative_error, true);
    hold("centered_cosine", found.centered_cosine, false);
    // Few images say little of a share, and near ties flip: docs/parity.md has the interval that decides.
    std::printf("top1_agreement   %.6g\n", found.top1_agreement);
    for (const char* name : {"median_error", "p90_error", "p90_divergence", "far_images"})
        if (limits.find(name) != nullptr) std::printf("%s has a limit, which is not checked here\n", name);
    return within ? 0 : 1;
}

int main(int argc, char** argv) {
    if (argc < 2 || argc > 3) {
        std::fprintf(stderr, "usage: open_bundle BUNDLE [ARTIFACT]\n");
        return 2;
    }
    try {
        return run(argv[1], argc == 3 ? argv[2] : "int8.cpu");
    } catch (const std::exception& error) {
        std::fprintf(stderr, "Error: %s: %s\n", argv[1], error.what());
        return 2;
    }
}
