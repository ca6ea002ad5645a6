/* The instruction sets of this build, and the tests whether the machine supports them.
 *
 * CMake defines FRNN_BUILT, the list of those that were compiled, each with the suffix of its tables and the format of
 * its bfloat16 weights: `ISA(base, base, FRNN_BFLOAT16) ISA(v3, v3, FRNN_BFLOAT16)`. GCC's and Clang's
 * __builtin_cpu_supports asks CPUID and, for registers that the operating system must save, XGETBV as well.
 */
#include "fastrnn.h"

/* CAN(suffix, name, test): one line per instruction set. */
#define CAN(suffix, isa_name, test)                                                                                    \
    __attribute__((unused)) static const char name_##suffix[] = isa_name;                                              \
    __attribute__((unused)) static int supported_##suffix(void) { return test; }

#define HAS(feature) __builtin_cpu_supports(feature)

#if defined(__x86_64__)
CAN(base, "x86-64", 1)
CAN(v3, "x86-64-v3", HAS("avx2") && HAS("fma"))
#define HAS_V4                                                                                                         \
    (HAS("avx512f") && HAS("avx512bw") && HAS("avx512cd") && HAS("avx512dq") && HAS("avx512vl"))
CAN(v4, "x86-64-v4", HAS_V4)
CAN(v4_bf16, "x86-64-v4-bf16", HAS_V4 && HAS("avx512bf16"))
#elif defined(__aarch64__)
CAN(neon, "neon", 1)
#else
CAN(base, "portable", 1)
#endif

#define ISA(suffix, tables, bfloat16)                                                                                  \
    extern const frnn_table frnn_table_f32_##tables, frnn_table_f64_##tables;                                          \
    extern const int frnn_vector_f32_##tables[2];
FRNN_BUILT
#undef ISA

#define ISA(suffix, tables, bfloat16)                                                                                  \
    {name_##suffix, supported_##suffix, &frnn_table_f32_##tables, &frnn_table_f64_##tables, frnn_vector_f32_##tables,  \
     bfloat16},
const frnn_isa frnn_isas[] = {FRNN_BUILT};
#undef ISA

const int frnn_isa_count = sizeof frnn_isas / sizeof *frnn_isas;
