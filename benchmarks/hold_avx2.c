/* Hides AVX-512 and AMX from every library of a process, so that all of them are timed with AVX2:
 *
 *     cc -shared -fPIC -O2 -o /tmp/hold_avx2.so benchmarks/hold_avx2.c
 *     LD_PRELOAD=/tmp/hold_avx2.so python -m fastrnn bench
 *
 * Libraries ask the CPUID instruction what the CPU has. On x86-64 Linux can make that instruction fault
 * (arch_prctl, where /proc/cpuinfo has the flag cpuid_fault); the handler below then answers in its place, with these
 * instruction sets left out. Threads inherit the setting, and a program that is executed loads this library again. Only
 * the C library itself has asked before; its memcpy may use AVX-512.
 *
 * What replaces the handler of SIGSEGV, as Python's faulthandler does, ends the process at its next CPUID.
 */
#define _GNU_SOURCE
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

enum { ARCH_SET_CPUID = 0x1012 };

#define BIT(n) (1u << (n))

/* Leaf 7, subleaf 0. */
static const unsigned ebx = BIT(16) | BIT(17) | BIT(21) | BIT(26) | BIT(27) | BIT(28) | BIT(30) | BIT(31); /* AVX-512 */
static const unsigned ecx = BIT(1) | BIT(6) | BIT(11) | BIT(12) | BIT(14);  /* AVX-512: VBMI to VPOPCNTDQ */
static const unsigned edx = BIT(2) | BIT(3) | BIT(8) | BIT(23)              /* AVX-512: 4VNNIW to FP16 */
                            | BIT(22) | BIT(24) | BIT(25);                  /* AMX: BF16, TILE, INT8 */
/* Leaf 7, subleaf 1. */
static const unsigned eax_1 = BIT(5) | BIT(21); /* AVX-512 BF16, AMX FP16 */
static const unsigned edx_1 = BIT(8) | BIT(19); /* AMX COMPLEX, AVX10 */

static int let_cpuid_run(int yes) { return (int)syscall(SYS_arch_prctl, ARCH_SET_CPUID, yes); }

static void answer(unsigned leaf, unsigned subleaf, unsigned r[4])
{
    let_cpuid_run(1); /* in this thread alone */
    __asm__ volatile("cpuid" : "=a"(r[0]), "=b"(r[1]), "=c"(r[2]), "=d"(r[3]) : "a"(leaf), "c"(subleaf));
    let_cpuid_run(0);
    if (leaf == 7 && subleaf == 0) r[1] &= ~ebx, r[2] &= ~ecx, r[3] &= ~edx;
    if (leaf == 7 && subleaf == 1) r[0] &= ~eax_1, r[3] &= ~edx_1;
}

static void on_fault(int signal, siginfo_t *info, void *context)
{
    greg_t *at = ((ucontext_t *)context)->uc_mcontext.gregs;
    const unsigned char *code = (const unsigned char *)at[REG_RIP];
    if (info->si_code != SI_KERNEL || code[0] != 0x0f || code[1] != 0xa2) {
        /* Not a CPUID: the instruction is tried again, and this time ends the process as usual. */
        struct sigaction usual = {.sa_handler = SIG_DFL};
        sigaction(signal, &usual, 0);
        return;
    }
    unsigned r[4];
    answer((unsigned)at[REG_RAX], (unsigned)at[REG_RCX], r);
    at[REG_RAX] = r[0], at[REG_RBX] = r[1], at[REG_RCX] = r[2], at[REG_RDX] = r[3];
    at[REG_RIP] += 2; /* past it */
}

__attribute__((constructor)) static void start(void)
{
    struct sigaction act = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_NODEFER};
    sigaction(SIGSEGV, &act, 0);
    if (let_cpuid_run(0)) {
        fprintf(stderr, "hold_avx2: this CPU or kernel cannot make CPUID fault\n");
        exit(1);
    }
}
