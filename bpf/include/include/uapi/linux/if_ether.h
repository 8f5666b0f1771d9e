/* SPDX-License-Identifier: GPL-2.0-only */
/* Asked for by name by the compiler frontend, which brings its own copy of what it needs. */
