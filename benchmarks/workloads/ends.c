/* SPDX-License-Identifier: Apache-2.0 */
/* ends [ARGUMENT...]: the shortest program there is: ends with the number of its arguments. */
#if defined(__aarch64__)
__asm__(".globl _start\n_start: ldr x0, [sp]\nsub x0, x0, #1\nmov x8, #93\nsvc #0\n");
#else
__asm__(".globl _start\n_start: mov (%rsp), %rdi\ndec %rdi\nmov $60, %eax\nsyscall\n");
#endif
