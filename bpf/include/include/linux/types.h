/* SPDX-License-Identifier: GPL-2.0-only */
/* Basic kernel types, and the register file a kprobe program is handed. */
#ifndef KERNOB_TYPES_H
#define KERNOB_TYPES_H

typedef signed char __s8;
typedef unsigned char __u8;
typedef short __s16;
typedef unsigned short __u16;
typedef int __s32;
typedef unsigned int __u32;
typedef long long __s64;
typedef unsigned long long __u64;
typedef __s8 s8;
typedef __u8 u8;
typedef __s16 s16;
typedef __u16 u16;
typedef __s32 s32;
typedef __u32 u32;
typedef __s64 s64;
typedef __u64 u64;
typedef __u16 __be16, __le16, __sum16;
typedef __u32 __be32, __le32, __wsum;
typedef __u64 __be64, __le64;
typedef unsigned long size_t;
typedef unsigned long uintptr_t;
typedef long ssize_t;
typedef int pid_t;
typedef _Bool bool;
enum { false, true };

#define __always_inline inline __attribute__((always_inline))
#define NULL ((void *)0)
#define __aligned_u64 __u64 __attribute__((aligned(8)))
#define TASK_COMM_LEN 16
#define PAGE_SIZE 4096

#if defined(__TARGET_ARCH_arm64) || defined(KERNOB_ARCH_ARM64)
struct pt_regs {
    u64 regs[31];
    u64 sp;
    u64 pc;
    u64 pstate;
};
#else
struct pt_regs {
    unsigned long r15, r14, r13, r12, bp, bx, r11, r10, r9, r8, ax, cx, dx, si, di, orig_ax;
    unsigned long ip, cs, flags, sp, ss;
};
#endif
#endif
