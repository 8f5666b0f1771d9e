/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Which program each process runs, by a number that outlives it: kept by lifecycle.bpf.c, and read where a
 * process may have ended before anybody looks (syscalls.bpf.c).
 */

/*
 * lives: every process, by tgid. Inserted at fork (or exec, where the fork was before our time) and by user
 * space for those that are older; replaced at exec, deleted at exit. When full, LOSS_LIVES_FULL.
 */
BPF_TABLE("hash", u32, struct life, lives, 1024);

/*
 * images: a program and where it runs, by hash. Inserted at its first sight, as far as the budget for new
 * ones goes, deleted by user space when it has not been seen for a while. When full, or beyond the budget,
 * LOSS_IMAGES_FULL, and what it does counts for image 0.
 */
BPF_TABLE("hash", u64, struct proc_val, images, 1024);

/* scripted: first four bytes of an executable's name whose arguments tell what it runs. Filled by user space
 * before anything attaches. */
BPF_TABLE("hash", u32, u8, scripted, 64);

/* drafts: too large for the stack. */
BPF_PERCPU_ARRAY(image_draft, struct proc_val, 1);
BPF_PERCPU_ARRAY(life_draft, struct life, 1);

/* life_budgets: per CPU, until when what was let through has used up its rate. */
enum life_budget { BUDGET_IMAGES, BUDGET_FAILURES, BUDGET_OTHERS, BUDGET_MAX };
BPF_PERCPU_ARRAY(life_budgets, u64, BUDGET_MAX);

/* Whether a budget has room for one more: `burst` at once, then one each `every_ns`. */
static __always_inline int afford(int which, u64 now, u64 every_ns, u64 burst)
{
    u64 *spent = life_budgets.lookup(&which);

    if (!spent || *spent > now + burst * every_ns)
        return 0;
    *spent = (*spent > now ? *spent : now) + every_ns;
    return 1;
}

static __always_inline u64 mix(u64 hash, u64 word)
{
    hash = (hash ^ word) * 0x9e3779b97f4a7c15ULL;
    return hash ^ hash >> 32;
}

/* `bytes`: a constant, a multiple of 8; `text` is zero behind its end. */
static __always_inline u64 mix_text(u64 hash, const char *text, const int bytes)
{
#pragma unroll
    for (int i = 0; i < bytes / 8; i++)
        hash = mix(hash, ((const u64 *)text)[i]);
    return hash;
}

/* Names the program that the current process runs, into `life`; its service's part into images. */
static __always_inline void learn_program(struct life *life, u64 now)
{
    const int direct = 0;
    int zero = 0;
    u32 is_v1;
    u64 task = bpf_get_current_task();
    struct proc_val *value = image_draft.lookup(&zero);

    life->image = life->line = 0;
    life->args_len = 0;
    if (!value)
        return;
    __builtin_memset(value->comm, 0, sizeof(value->comm));
    __builtin_memset(value->exe, 0, sizeof(value->exe));
    __builtin_memset(value->args, 0, sizeof(value->args));
    capture_program(task, value);
    __builtin_memcpy(life->comm, value->comm, sizeof(life->comm));
    __builtin_memcpy(life->exe, value->exe, sizeof(life->exe));
    __builtin_memcpy(life->args, value->args, sizeof(life->args));
    life->args_len = value->args_len;

    u64 name = mix_text(mix_text(1, value->comm, sizeof(value->comm)), value->exe, sizeof(value->exe));
    life->line = mix_text(name, value->args, sizeof(value->args));
    u32 begin = *(u32 *)(value->exe[0] ? value->exe : value->comm);
    u64 node = cgroup_node(task, &is_v1);
    u64 image = mix(scripted.lookup(&begin) ? life->line : name, READ(u64, node, OFF_KERNFS_NODE_ID)) | 1;
    if (!images.lookup(&image)) {
        if (!afford(BUDGET_IMAGES, now, 10000000, 500)) {
            lose(LOSS_IMAGES_FULL, 1);
            return;
        }
        value->exit_ns = 0;
        value->netns = 0;
        value->ppid = 0;
        capture_cgroup(task, value);
        if (images.insert(&image, value) && !images.lookup(&image)) {
            lose(LOSS_IMAGES_FULL, 1);
            return;
        }
    }
    life->image = image;
}
