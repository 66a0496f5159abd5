// SPDX-License-Identifier: Apache-2.0
//
// A rank of an engine in C++:  c++ -std=c++17 rank.cc -o rank $(pkg-config --cflags wideep_shm)  &&  ./rank 1
#include "wideep_shm.h"

#include <cstdio>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace
{

constexpr uint32_t ranks = 2, layers = 3, logical = 6, physical = 8;
constexpr uint64_t passes = 50;

struct Close {
    void operator()(wideep_writer *writer) const
    {
        wideep_close(&writer);
    }
};
using Writer = std::unique_ptr<wideep_writer, Close>;

void check(int error)
{
    if (error)
        throw std::runtime_error(wideep_error_text(error));
}

Writer create(uint32_t rank)
{
    wideep_config config = {};
    config.rank = rank;
    config.ep_size = ranks;
    config.model_count = 1;
    config.models[0] = {"example", layers, logical, physical};
    wideep_writer *writer = nullptr;
    check(wideep_create(&writer, &config));
    return Writer(writer);
}

} // namespace

int main(int argc, char **argv)
try {
    const Writer writer = create(argc > 1 ? static_cast<uint32_t>(std::stoul(argv[1])) : 0);
    std::vector<int32_t> loads(layers * physical), map(layers * physical);
    for (uint64_t n = 0; n < passes; n++) {
        for (uint32_t i = 0; i < layers * physical; i++) { // stands for a forward pass
            loads[i] = static_cast<int32_t>(2 * n + i);
            map[i] = static_cast<int32_t>(i % physical % logical);
        }
        const wideep_pass pass = {n, 0, static_cast<uint32_t>(n), 0};
        check(wideep_record_pass(writer.get(), &pass, loads.data(), map.data()));
        if (n % 10 == 0) // in an engine: about once a second, and while it is idle too
            check(wideep_check(writer.get()));
    }
    check(wideep_rearrangement_begin(writer.get(), 0, WIDEEP_SYNC)); // before the engine blocks
    check(wideep_rearrangement_end(writer.get(), 0, nullptr));
} catch (const std::exception &error) {
    std::fprintf(stderr, "wideep: %s\n", error.what());
    return 1;
}
