// SPDX-License-Identifier: GPL-2.0
/*
 * C side of src/linux for sockets, generic netlink, /proc and module parameters; see helpers_net.h.
 */
#include <linux/bitmap.h>
#include <linux/bvec.h>
#include <linux/completion.h>
#include <linux/cpumask.h>
#include <linux/jiffies.h>
#include <linux/module.h>
#include <linux/moduleparam.h>
#include <linux/net.h>
#include <linux/proc_fs.h>
#include <linux/sched.h>
#include <linux/seq_file.h>
#include <linux/tcp.h>
#include <linux/uio.h>
#include <net/genetlink.h>
#include <net/net_namespace.h>
#include <net/sock.h>
#include <net/tcp.h>

#include "helpers_net.h"

/* The text of a mask has at most 31 digits of 4 bits. */
#define DRBD_CPU_MASK_BITS 128U

/* ---- sockets ---- */

/*
 * Memory for a socket of ours is taken while the disk below waits for us: no I/O, no page of the current task. An
 * accepted socket is a copy of the listening one, in this as well.
 *
 * Our sockets are locked while a request is submitted, where a user's socket may be locked as well: to lockdep, the
 * kernel's sockets are other classes than the users', accepted ones too. Classes of our own would hold the module for
 * as long as TCP needs to bury a socket, and an accepted one, which packets arrive at, cannot be given any.
 */
int drbd_h_sock_create(int family, struct socket **result)
{
	int err = sock_create_kern(&init_net, family, SOCK_STREAM, IPPROTO_TCP, result);

	if (!err) {
		(*result)->sk->sk_allocation = GFP_NOIO;
		(*result)->sk->sk_use_task_frag = false;
	}
	return err;
}

void drbd_h_sock_buffers(struct socket *sock, u32 send_bytes, u32 receive_bytes)
{
	struct sock *sk = sock->sk;

	if (send_bytes) {
		WRITE_ONCE(sk->sk_sndbuf, send_bytes);
		sk->sk_userlocks |= SOCK_SNDBUF_LOCK;
	}
	if (receive_bytes) {
		WRITE_ONCE(sk->sk_rcvbuf, receive_bytes);
		sk->sk_userlocks |= SOCK_RCVBUF_LOCK;
	}
}

static long timeout_jiffies(unsigned int ms)
{
	return ms ? (long)msecs_to_jiffies(ms) : MAX_SCHEDULE_TIMEOUT;
}

void drbd_h_sock_receive_timeout(struct socket *sock, unsigned int receive_ms)
{
	WRITE_ONCE(sock->sk->sk_rcvtimeo, timeout_jiffies(receive_ms));
}

void drbd_h_sock_send_timeout(struct socket *sock, unsigned int send_ms)
{
	WRITE_ONCE(sock->sk->sk_sndtimeo, timeout_jiffies(send_ms));
}

void drbd_h_sock_priority(struct socket *sock, u32 priority)
{
	sock_set_priority(sock->sk, priority);
}

void drbd_h_sock_nodelay(struct socket *sock)
{
	tcp_sock_set_nodelay(sock->sk);
}

void drbd_h_sock_reuse(struct socket *sock)
{
	sock_set_reuseaddr(sock->sk);
}

/* Bytes that arrived and were not read yet. */
size_t drbd_h_sock_unread(struct socket *sock)
{
	struct tcp_sock *tp = tcp_sk(sock->sk);

	return READ_ONCE(tp->rcv_nxt) - READ_ONCE(tp->copied_seq);
}

int drbd_h_sock_receive(struct socket *sock, void *data, size_t bytes, bool all)
{
	int flags = MSG_NOSIGNAL | (all ? MSG_WAITALL : 0);
	struct msghdr msg = { .msg_flags = flags };
	struct kvec vec = { .iov_base = data, .iov_len = bytes };

	return kernel_recvmsg(sock, &msg, &vec, 1, bytes, flags);
}

int drbd_h_sock_peek(struct socket *sock)
{
	int flags = MSG_NOSIGNAL | MSG_DONTWAIT | MSG_PEEK;
	struct msghdr msg = { .msg_flags = flags };
	u8 byte;
	struct kvec vec = { .iov_base = &byte, .iov_len = 1 };

	return kernel_recvmsg(sock, &msg, &vec, 1, 1, flags);
}

/* Pages of a slab cannot be lent to the network stack. */
bool drbd_h_bvecs_spliceable(const struct bio_vec *bvecs, unsigned int count)
{
	unsigned int i;

	for (i = 0; i < count; i++)
		if (!sendpages_ok(bvecs[i].bv_page, bvecs[i].bv_len, bvecs[i].bv_offset))
			return false;
	return true;
}

/* Head and data in one go: the socket is locked once, and nothing is pushed out between them. */
int drbd_h_sock_send_packet(struct socket *sock, const void *head, size_t head_bytes, const struct bio_vec *bvecs,
			    unsigned int count, size_t skip, size_t bytes, unsigned int flags)
{
	int msg_flags = MSG_NOSIGNAL | (flags & DRBD_H_SEND_MORE ? MSG_MORE : 0) |
			(flags & DRBD_H_SEND_DONTWAIT ? MSG_DONTWAIT : 0);
	int sent = 0, result = 0;

	lock_sock(sock->sk);
	if (head_bytes) {
		struct msghdr msg = { .msg_flags = msg_flags | (bytes ? MSG_MORE : 0) };
		struct kvec vec = { .iov_base = (void *)head, .iov_len = head_bytes };

		iov_iter_kvec(&msg.msg_iter, ITER_SOURCE, &vec, 1, head_bytes);
		result = tcp_sendmsg_locked(sock->sk, &msg, head_bytes);
		if (result > 0)
			sent = result;
	}
	if (bytes && sent == head_bytes) {
		struct msghdr msg = { .msg_flags = msg_flags | (flags & DRBD_H_SEND_SPLICE ? MSG_SPLICE_PAGES : 0) };

		iov_iter_bvec(&msg.msg_iter, ITER_SOURCE, bvecs, count, skip + bytes);
		iov_iter_advance(&msg.msg_iter, skip);
		result = tcp_sendmsg_locked(sock->sk, &msg, bytes);
		if (result > 0)
			sent += result;
	}
	release_sock(sock->sk);
	return sent ?: result;
}

/* Whatever has arrived, the first bytes of it into head, which is from kmalloc, and the rest into the vectors. The first
 * vector is free for head. */
int drbd_h_sock_receive_packet(struct socket *sock, void *head, size_t head_bytes, struct bio_vec *bvecs,
			       unsigned int count, size_t bytes)
{
	struct msghdr msg = { .msg_flags = MSG_NOSIGNAL };

	bvec_set_virt(&bvecs[0], head, head_bytes);
	iov_iter_bvec(&msg.msg_iter, ITER_DEST, bvecs, count, head_bytes + bytes);
	return sock_recvmsg(sock, &msg, MSG_NOSIGNAL);
}

int drbd_h_sock_receive_bvecs(struct socket *sock, const struct bio_vec *bvecs, unsigned int count,
			      size_t skip, size_t bytes)
{
	int flags = MSG_NOSIGNAL | MSG_WAITALL;
	struct msghdr msg = { .msg_flags = flags };

	iov_iter_bvec(&msg.msg_iter, ITER_DEST, bvecs, count, skip + bytes);
	iov_iter_advance(&msg.msg_iter, skip);
	return sock_recvmsg(sock, &msg, flags);
}

/* ---- generic netlink ---- */

struct family_header {
	u32 minor;
	u32 flags_or_code;
};

static const struct drbd_h_genl_callbacks *genl_callbacks;
static void *genl_data;
static struct genl_ops genl_commands[DRBD_H_GENL_MAX_COMMANDS];
static struct genl_multicast_group genl_groups[1];

static struct genl_family genl_family = {
	.hdrsize = sizeof(struct family_header),
	.netnsok = true,
	.module = THIS_MODULE,
	.ops = genl_commands,
	.mcgrps = genl_groups,
	.n_mcgrps = ARRAY_SIZE(genl_groups),
	/* Nobody of our senders was ever asked to clear the reserved half-word. */
	.resv_start_op = DRBD_H_GENL_MAX_COMMANDS,
};

static int genl_request_of(const struct nlmsghdr *nlh, struct sk_buff *skb, struct drbd_h_genl_request *request)
{
	const int header_bytes = GENL_HDRLEN + sizeof(struct family_header);
	const struct genlmsghdr *genl = nlmsg_data(nlh);
	const struct family_header *header;

	if (nlmsg_len(nlh) < header_bytes)
		return -EINVAL;
	header = (const void *)genl + GENL_HDRLEN;
	*request = (struct drbd_h_genl_request) {
		.command = genl->cmd,
		.minor = header->minor,
		.flags = header->flags_or_code,
		.exclusive = nlh->nlmsg_flags & NLM_F_EXCL,
		.net_admin = netlink_capable(skb, CAP_NET_ADMIN),
		.sys_admin = netlink_capable(skb, CAP_SYS_ADMIN),
		.attributes = (const void *)genl + header_bytes,
		.attributes_bytes = nlmsg_len(nlh) - header_bytes,
	};
	return 0;
}

static int genl_put(struct sk_buff *skb, u32 port, u32 sequence, const struct drbd_h_genl_message *message)
{
	struct family_header *header;

	header = genlmsg_put(skb, message->kernel_port ? 0 : port, sequence, &genl_family,
			     message->multi ? NLM_F_MULTI : 0, message->command);
	if (!header)
		return -EMSGSIZE;
	header->minor = message->minor;
	header->flags_or_code = message->code;
	if (skb_tailroom(skb) >= message->attributes_bytes) {
		skb_put_data(skb, message->attributes, message->attributes_bytes);
		genlmsg_end(skb, header);
		return 0;
	}
	genlmsg_cancel(skb, header);
	return -EMSGSIZE;
}

static struct sk_buff *genl_new(const struct drbd_h_genl_message *message)
{
	return genlmsg_new(sizeof(struct family_header) + message->attributes_bytes, GFP_NOIO);
}

static int genl_do(struct sk_buff *skb, struct genl_info *info)
{
	struct drbd_h_genl_request request;
	struct drbd_h_genl_message reply;
	struct sk_buff *answer;
	void *owner = NULL;
	int err;

	err = genl_request_of(info->nlhdr, skb, &request);
	if (err)
		return err;
	err = genl_callbacks->request(genl_data, &request, &reply, &owner);
	if (err)
		return err;
	answer = genl_new(&reply);
	err = answer ? genl_put(answer, info->snd_portid, info->snd_seq, &reply) : -ENOMEM;
	genl_callbacks->release_reply(owner);
	if (err) {
		nlmsg_free(answer);
		return err;
	}
	return genlmsg_reply(answer, info);
}

/* cb->args[0]: the answer, made at the first call. cb->args[1]: an errno to end with, or 1 after the end. */
static int genl_dump(struct sk_buff *skb, struct netlink_callback *cb)
{
	struct drbd_h_genl_request request;
	struct drbd_h_genl_message message;
	int err;

	if (!cb->args[0]) {
		void *dump;

		err = genl_request_of(cb->nlh, cb->skb, &request);
		if (!err)
			err = genl_callbacks->dump_start(genl_data, &request, &dump);
		if (err)
			return err;
		cb->args[0] = (long)dump;
	}
	while ((err = genl_callbacks->dump_peek((void *)cb->args[0], &message)) > 0) {
		err = genl_put(skb, NETLINK_CB(cb->skb).portid, cb->nlh->nlmsg_seq, &message);
		if (err)
			return skb->len ? skb->len : err;
		genl_callbacks->dump_advance((void *)cb->args[0]);
	}
	/* The end travels alone: existing readers look at the first message of a datagram only. */
	return skb->len ? skb->len : err;
}

static int genl_dump_done(struct netlink_callback *cb)
{
	if (cb->args[0])
		genl_callbacks->dump_done((void *)cb->args[0]);
	return 0;
}

/* Threads of the module may outlive the family. */
static bool genl_registered;

int drbd_h_genl_register(const char *name, u8 version, unsigned int max_attribute, const char *group,
			 const struct drbd_h_genl_command *commands, unsigned int count,
			 const struct drbd_h_genl_callbacks *callbacks, void *data)
{
	unsigned int i;
	int err;

	if (count > DRBD_H_GENL_MAX_COMMANDS)
		return -EINVAL;
	for (i = 0; i < count; i++)
		genl_commands[i] = (struct genl_ops) {
			.cmd = commands[i].command,
			.flags = commands[i].admin ? GENL_ADMIN_PERM : 0,
			.validate = GENL_DONT_VALIDATE_STRICT | GENL_DONT_VALIDATE_DUMP,
			.doit = commands[i].can_do ? genl_do : NULL,
			.dumpit = commands[i].can_dump ? genl_dump : NULL,
			.done = commands[i].can_dump ? genl_dump_done : NULL,
		};
	strscpy(genl_family.name, name);
	strscpy(genl_groups[0].name, group);
	genl_family.version = version;
	genl_family.maxattr = max_attribute;
	genl_family.n_ops = count;
	genl_callbacks = callbacks;
	genl_data = data;
	err = genl_register_family(&genl_family);
	WRITE_ONCE(genl_registered, !err);
	return err;
}

void drbd_h_genl_unregister(void)
{
	WRITE_ONCE(genl_registered, false);
	genl_unregister_family(&genl_family);
}

bool drbd_h_genl_has_listeners(void)
{
	return READ_ONCE(genl_registered) && genl_has_listeners(&genl_family, &init_net, 0);
}

int drbd_h_genl_multicast(const struct drbd_h_genl_message *message, u32 sequence)
{
	struct sk_buff *skb = genl_new(message);
	int err = skb ? genl_put(skb, 0, sequence, message) : -ENOMEM;

	if (err) {
		nlmsg_free(skb);
		return err;
	}
	return genlmsg_multicast(&genl_family, skb, 0, 0, GFP_NOIO);
}

/* A handler that waits for user space lets other requests in; the module stays while it does. */
void drbd_h_genl_unlock(void)
{
	__module_get(THIS_MODULE);
	genl_unlock();
}

void drbd_h_genl_lock(void)
{
	genl_lock();
	module_put(THIS_MODULE);
}

/* ---- /proc ---- */

struct proc_dir_entry *drbd_h_proc_create(const char *name,
					  int (*show)(struct seq_file *file, void *data), void *data)
{
	return proc_create_single_data(name, 0444, NULL, show, data);
}

void drbd_h_proc_remove(struct proc_dir_entry *entry)
{
	proc_remove(entry);
}

void *drbd_h_seq_private(struct seq_file *file)
{
	return file->private;
}

/* ---- parameters; spec: proc-and-sysfs 4 ---- */

static unsigned int minor_count = 32;
module_param(minor_count, uint, 0444);
MODULE_PARM_DESC(minor_count, "Number of devices to size the memory pools for (1-255)");

static char usermode_helper[80] = "/sbin/drbdadm";
module_param_string(usermode_helper, usermode_helper, sizeof(usermode_helper), 0644);
MODULE_PARM_DESC(usermode_helper, "Program run for events");

static bool disable_sendpage;
module_param(disable_sendpage, bool, 0644);
MODULE_PARM_DESC(disable_sendpage, "Copy data into the socket instead of lending its pages");

static bool allow_oos;
module_param(allow_oos, bool, 0);
MODULE_PARM_DESC(allow_oos, "Allow reads on a Secondary: the data may be out of date");

static int proc_details;
module_param(proc_details, int, 0644);
MODULE_PARM_DESC(proc_details, "Level of detail in /proc/drbd");

static int enable_faults;
module_param(enable_faults, int, 0664);
MODULE_PARM_DESC(enable_faults, "Kinds of requests that are made to fail, for tests: a bit each");

static int fault_rate;
module_param(fault_rate, int, 0664);
MODULE_PARM_DESC(fault_rate, "How many of these fail, in percent");

static int fault_count;
module_param(fault_count, int, 0664);
MODULE_PARM_DESC(fault_count, "How many have been made to fail");

static int fault_devs;
module_param(fault_devs, int, 0644);
MODULE_PARM_DESC(fault_devs, "On which minors: a bit each, 0 for all");

MODULE_VERSION("8.4.11");

unsigned int drbd_h_param_minor_count(void)
{
	return minor_count;
}

bool drbd_h_param_disable_sendpage(void)
{
	return READ_ONCE(disable_sendpage);
}

bool drbd_h_param_allow_oos(void)
{
	return allow_oos;
}

u32 drbd_h_param_enable_faults(void)
{
	return READ_ONCE(enable_faults);
}

u32 drbd_h_param_fault_devs(void)
{
	return READ_ONCE(fault_devs);
}

u32 drbd_h_param_fault_rate(void)
{
	return clamp(READ_ONCE(fault_rate), 0, 100);
}

/* Faults at the same moment may be counted once. */
void drbd_h_param_count_fault(void)
{
	WRITE_ONCE(fault_count, READ_ONCE(fault_count) + 1);
}

int drbd_h_param_proc_details(void)
{
	return READ_ONCE(proc_details);
}

void drbd_h_param_usermode_helper(char *out, size_t bytes)
{
	kernel_param_lock(THIS_MODULE);
	strscpy(out, usermode_helper, bytes);
	kernel_param_unlock(THIS_MODULE);
}

const char *drbd_h_source_version(void)
{
	return THIS_MODULE->srcversion;
}

/* ---- the module's own reference count ---- */

bool drbd_h_module_get(void)
{
	return try_module_get(THIS_MODULE);
}

void drbd_h_module_put(void)
{
	module_put(THIS_MODULE);
}

/* ---- threads ---- */

void drbd_h_completion_init(struct completion *done)
{
	init_completion(done);
}

void drbd_h_thread_fifo_low(void)
{
	sched_set_fifo_low(current);
}

/* 0 in interrupts, also in those on top of the current task. */
size_t drbd_h_current_task(void)
{
	return in_task() ? (size_t)current : 0;
}

void drbd_h_thread_set_cpus(const char *text, size_t bytes)
{
	DECLARE_BITMAP(wanted, DRBD_CPU_MASK_BITS);
	cpumask_var_t mask;
	unsigned int cpu;

	if (!zalloc_cpumask_var(&mask, GFP_KERNEL))
		return;
	if (bytes && !bitmap_parse(text, bytes, wanted, DRBD_CPU_MASK_BITS)) {
		for_each_set_bit(cpu, wanted, min(DRBD_CPU_MASK_BITS, nr_cpu_ids))
			cpumask_set_cpu(cpu, mask);
	}
	if (!cpumask_intersects(mask, cpu_online_mask))
		cpumask_copy(mask, cpu_possible_mask);
	set_cpus_allowed_ptr(current, mask);
	free_cpumask_var(mask);
}
