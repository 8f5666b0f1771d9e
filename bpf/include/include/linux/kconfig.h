/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The one header the compiler is told to include first. Kernob compiles without kernel headers:
 * struct fields are read at offsets from BTF, so all that remains are the basic types.
 */
#ifndef KERNOB_KCONFIG_H
#define KERNOB_KCONFIG_H
#define CONFIG_BPF_SYSCALL 1
#include <linux/types.h>
#endif
