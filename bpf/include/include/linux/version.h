/* SPDX-License-Identifier: GPL-2.0-only */
/* The compiler frontend asks for a version; nothing in bpf/ depends on it. */
#ifndef LINUX_VERSION_CODE
#define LINUX_VERSION_CODE 0x060000
#endif
#define KERNEL_VERSION(a, b, c) (((a) << 16) + ((b) << 8) + ((c) > 255 ? 255 : (c)))
