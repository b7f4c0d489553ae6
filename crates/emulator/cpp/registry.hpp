// The kernels by name, callable with arguments as a driver takes them: a pointer to each.
#pragma once

#include <cstddef>
#include <functional>
#include <map>
#include <string>
#include <utility>

struct Registration {
    unsigned threads;
    size_t arguments;
    std::function<void(void* const*)> call;
};

inline std::map<std::string, Registration>& registry() {
    static std::map<std::string, Registration> kernels;
    return kernels;
}

template <class... A, size_t... I>
void call_with(void (*kernel)(A...), void* const* arguments, std::index_sequence<I...>) {
    kernel(*static_cast<std::remove_const_t<A>*>(arguments[I])...);
}

struct Registered {
    template <class... A>
    Registered(const char* name, unsigned threads, void (*kernel)(A...)) {
        registry()[name] = {threads, sizeof...(A), [kernel](void* const* arguments) {
                                call_with(kernel, arguments, std::index_sequence_for<A...>{});
                            }};
    }
};
