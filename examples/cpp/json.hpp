// JSON (RFC 8259): a document as one value, read strictly.
#pragma once

#include <cstdlib>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

class Json {
public:
    enum class Kind { null, boolean, number, text, array, object };

    // Throws std::runtime_error for what is no JSON document, or repeats a key.
    static Json parse(const std::string& text) {
        Parser parser{text};
        Json value = parser.value(0);
        parser.space();
        if (parser.at != text.size()) parser.fail("something after its end");
        return value;
    }

    Kind kind() const { return kind_; }
    bool is_null() const { return kind_ == Kind::null; }
    bool flag() const { return of(Kind::boolean), number_ != 0; }
    double number() const { return of(Kind::number), number_; }
    const std::string& text() const { return of(Kind::text), text_; }
    const std::vector<Json>& items() const { return of(Kind::array), items_; }
    const std::map<std::string, Json>& members() const { return of(Kind::object), members_; }

    std::size_t count() const {
        if (number() < 0 || number() > 9007199254740992.0 ||
            number() != static_cast<double>(static_cast<std::size_t>(number())))
            throw std::runtime_error("expected a whole number");
        return static_cast<std::size_t>(number_);
    }

    const Json& operator[](const std::string& key) const {
        auto found = members().find(key);
        if (found == members_.end()) throw std::runtime_error("lacks the key '" + key + "'");
        return found->second;
    }

    const Json* find(const std::string& key) const {
        auto found = members().find(key);
        return found == members_.end() || found->second.is_null() ? nullptr : &found->second;
    }

private:
    void of(Kind kind) const {
        if (kind_ != kind) throw std::runtime_error("a value is of another type than the format says");
    }

    struct Parser {
        const std::string& text;
        std::size_t at = 0;

        [[noreturn]] void fail(const std::string& what) const {
            throw std::runtime_error("is not JSON: " + what + " at byte " + std::to_string(at));
        }
        void space() {
            while (at < text.size() && std::string(" \t\r\n").find(text[at]) != std::string::npos) ++at;
        }
        bool take(const std::string& word) {
            if (text.compare(at, word.size(), word) != 0) return false;
            at += word.size();
            return true;
        }
        Json value(int depth) {
            if (depth > 64) fail("nested too deep");
            space();
            Json found;
            if (take("null")) return found;
            if (take("true") || take("false")) {
                found.kind_ = Kind::boolean;
                found.number_ = text[at - 2] == 'u';  // "true", or "false" with its s
            } else if (take("\"")) {
                found.kind_ = Kind::text;
                found.text_ = string();
            } else if (take("[")) {
                found.kind_ = Kind::array;
                list("]", [&] { found.items_.push_back(value(depth + 1)); });
            } else if (take("{")) {
                found.kind_ = Kind::object;
                list("}", [&] {
                    space();
                    if (!take("\"")) fail("no key");
                    std::string key = string();
                    space();
                    if (!take(":")) fail("no colon");
                    if (!found.members_.emplace(key, value(depth + 1)).second) fail("'" + key + "' a second time");
                });
            } else {
                found.kind_ = Kind::number;
                std::size_t end = text.find_first_not_of("+-.0123456789eE", at);
                std::string digits = text.substr(at, end == std::string::npos ? end : end - at);
                char* rest = nullptr;
                found.number_ = std::strtod(digits.c_str(), &rest);
                if (digits.empty() || *rest != '\0') fail("no value");
                at += digits.size();
            }
            return found;
        }
        template <typename Item>
        void list(const std::string& end, Item item) {
            space();
            if (take(end)) return;
            do item();
            while (space(), take(","));
            if (!take(end)) fail("no " + end);
        }
        std::string string() {
            std::string found;
            while (at < text.size() && text[at] != '"') {
                if (static_cast<unsigned char>(text[at]) < 0x20) fail("a control character");
                if (text[at] != '\\') {
                    found += text[at++];
                    continue;
                }
                if (++at >= text.size()) break;
                static const std::string from = "\"\\/bfnrt", to = "\"\\/\b\f\n\r\t";
                std::size_t simple = from.find(text[at++]);
                if (simple != std::string::npos) {
                    found += to[simple];
                } else if (text[at - 1] == 'u') {
                    unsigned code = unit();
                    if (code >= 0xD800 && code < 0xDC00 && take("\\u"))
                        code = 0x10000 + ((code - 0xD800) << 10) + (unit() - 0xDC00);
                    utf8(found, code);
                } else {
                    fail("an unknown escape");
                }
            }
            if (!take("\"")) fail("a text without end");
            return found;
        }
        unsigned unit() {
            std::string digits = text.substr(at, 4);
            if (digits.size() != 4 || digits.find_first_not_of("0123456789abcdefABCDEF") != std::string::npos)
                fail("no \\u escape");
            at += 4;
            return static_cast<unsigned>(std::strtoul(digits.c_str(), nullptr, 16));
        }
        static void utf8(std::string& out, unsigned code) {
            if (code < 0x80) {
                out += static_cast<char>(code);
                return;
            }
            int more = code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
            static const unsigned first[] = {0, 0xC0, 0xE0, 0xF0};
            out += static_cast<char>(first[more] | (code >> (6 * more)));
            while (more--) out += static_cast<char>(0x80 | ((code >> (6 * more)) & 0x3F));
        }
    };

    Kind kind_ = Kind::null;
    double number_ = 0;
    std::string text_;
    std::vector<Json> items_;
    std::map<std::string, Json> members_;
};
