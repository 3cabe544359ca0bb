// golden.npz: a zip archive of .npy arrays, stored without compression, version 1.0, C order, little-endian (NEP 1).
#pragma once

#include <cstdint>
#include <cstring>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

class Npz {
public:
    explicit Npz(const std::string& archive) : archive_(archive) {
        // The directory at the end says where each member stands; the record after it, where the directory does.
        std::size_t end = archive.rfind(std::string("PK\5\6", 4));
        if (end == std::string::npos) throw std::runtime_error("is no zip archive");
        std::size_t at = number(end + 16, 4);
        for (std::size_t left = number(end + 10, 2); left > 0; --left) {
            if (number(at, 4) != 0x02014b50 || number(at + 10, 2) != 0)
                throw std::runtime_error("has a member that is not stored as it is");
            std::size_t size = number(at + 24, 4), name = number(at + 28, 2), header = number(at + 42, 4);
            std::size_t data = header + 30 + number(header + 26, 2) + number(header + 28, 2);
            members_[part(at + 46, name)] = part(data, size);
            at += 46 + name + number(at + 30, 2) + number(at + 32, 2);
        }
    }

    // The values of the array `name`, which must have this type ("<f4", "|u1") and shape.
    template <typename Value>
    std::vector<Value> array(const std::string& name, const std::string& type,
                             const std::vector<std::size_t>& shape) const {
        auto found = members_.find(name + ".npy");
        if (found == members_.end()) throw std::runtime_error("lacks the array " + name);
        const std::string& file = found->second;
        if (file.compare(0, 8, std::string("\x93NUMPY\1\0", 8)) != 0 || file.size() < 10)
            throw std::runtime_error("has an array of another version");
        std::size_t begin = 10 + static_cast<unsigned char>(file[8]) + 256 * static_cast<unsigned char>(file[9]);
        std::string sizes;
        std::size_t count = 1;
        for (std::size_t size : shape) sizes += std::to_string(size) + ", ", count *= size;
        sizes.resize(sizes.size() - (shape.size() > 1 ? 2 : 1));  // a tuple of one keeps its comma
        std::string expected = "{'descr': '" + type + "', 'fortran_order': False, 'shape': (" + sizes + "), }";
        std::string header = file.substr(10, begin - 10);
        if (header.compare(0, expected.size(), expected) != 0 || file.size() - begin != count * sizeof(Value))
            throw std::runtime_error("has an array " + name + " with the header " + header + ", expected " + expected);
        std::vector<Value> values(count);
        std::memcpy(values.data(), file.data() + begin, count * sizeof(Value));
        return values;
    }

private:
    std::string part(std::size_t at, std::size_t size) const {
        if (at > archive_.size() || size > archive_.size() - at) throw std::runtime_error("is cut off");
        return archive_.substr(at, size);
    }
    std::size_t number(std::size_t at, int bytes) const {
        std::string digits = part(at, bytes);
        std::size_t value = 0;
        while (bytes--) value = value << 8 | static_cast<unsigned char>(digits[bytes]);
        return value;
    }

    const std::string& archive_;
    std::map<std::string, std::string> members_;
};
