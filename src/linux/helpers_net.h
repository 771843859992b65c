/* SPDX-License-Identifier: GPL-2.0 */
/*
 * C side of src/linux for sockets, generic netlink, /proc and module parameters: what is a macro, an inline function
 * or a field of a structure that the kernel crate does not describe. No decision is taken here.
 */
#ifndef DRBD_HELPERS_NET_H
#define DRBD_HELPERS_NET_H

#include <linux/types.h>

struct bio_vec;
struct completion;
struct socket;
struct seq_file;
struct proc_dir_entry;

/* Sockets. All of them sleep. */
int drbd_h_sock_create(int family, struct socket **result);
void drbd_h_sock_buffers(struct socket *sock, u32 send_bytes, u32 receive_bytes);
void drbd_h_sock_send_timeout(struct socket *sock, unsigned int send_ms);
void drbd_h_sock_receive_timeout(struct socket *sock, unsigned int receive_ms);
void drbd_h_sock_priority(struct socket *sock, u32 priority);
void drbd_h_sock_nodelay(struct socket *sock);
void drbd_h_sock_reuse(struct socket *sock);
size_t drbd_h_sock_unread(struct socket *sock);
int drbd_h_sock_receive(struct socket *sock, void *data, size_t bytes, bool all);
int drbd_h_sock_peek(struct socket *sock);
#define DRBD_H_SEND_MORE 1U
#define DRBD_H_SEND_SPLICE 2U
#define DRBD_H_SEND_DONTWAIT 4U
int drbd_h_sock_send_packet(struct socket *sock, const void *head, size_t head_bytes, const struct bio_vec *bvecs,
			    unsigned int count, size_t skip, size_t bytes, unsigned int flags);
int drbd_h_sock_receive_packet(struct socket *sock, void *head, size_t head_bytes, struct bio_vec *bvecs,
			       unsigned int count, size_t bytes);
int drbd_h_sock_receive_bvecs(struct socket *sock, const struct bio_vec *bvecs, unsigned int count,
			      size_t skip, size_t bytes);
bool drbd_h_bvecs_spliceable(const struct bio_vec *bvecs, unsigned int count);

/* Generic netlink: bytes in, bytes out; the attributes are read and written in Rust. */
#define DRBD_H_GENL_MAX_COMMANDS 48

struct drbd_h_genl_command {
	u8 command;
	bool admin;
	bool can_do;
	bool can_dump;
};

struct drbd_h_genl_request {
	u8 command;
	u32 minor;		/* of the family's header */
	u32 flags;		/* of the family's header */
	bool exclusive;		/* NLM_F_EXCL */
	bool net_admin;		/* the sender has CAP_NET_ADMIN */
	bool sys_admin;		/* the sender has CAP_SYS_ADMIN */
	const void *attributes;
	size_t attributes_bytes;
};

struct drbd_h_genl_message {
	u8 command;
	bool multi;		/* NLM_F_MULTI */
	bool kernel_port;	/* port 0 instead of the requester's */
	u32 minor;
	s32 code;		/* the family's ret_code */
	const void *attributes;
	size_t attributes_bytes;
};

struct drbd_h_genl_callbacks {
	/* Fills in the reply; its bytes stay valid until release_reply. < 0: an errno, no reply. */
	int (*request)(void *data, const struct drbd_h_genl_request *request,
		       struct drbd_h_genl_message *reply, void **reply_owner);
	void (*release_reply)(void *reply_owner);
	/* Makes the complete answer of a dump. */
	int (*dump_start)(void *data, const struct drbd_h_genl_request *request, void **dump);
	/* 1: *message is the next one (again and again until dump_advance). 0 or an errno: the end. */
	int (*dump_peek)(void *dump, struct drbd_h_genl_message *message);
	void (*dump_advance)(void *dump);
	void (*dump_done)(void *dump);
};

int drbd_h_genl_register(const char *name, u8 version, unsigned int max_attribute, const char *group,
			 const struct drbd_h_genl_command *commands, unsigned int count,
			 const struct drbd_h_genl_callbacks *callbacks, void *data);
void drbd_h_genl_unregister(void);
int drbd_h_genl_multicast(const struct drbd_h_genl_message *message, u32 sequence);
bool drbd_h_genl_has_listeners(void);
void drbd_h_genl_unlock(void);
void drbd_h_genl_lock(void);

/* One file in /proc. */
struct proc_dir_entry *drbd_h_proc_create(const char *name,
					  int (*show)(struct seq_file *file, void *data), void *data);
void drbd_h_proc_remove(struct proc_dir_entry *entry);
void *drbd_h_seq_private(struct seq_file *file);

/* Module parameters and build facts. */
unsigned int drbd_h_param_minor_count(void);
bool drbd_h_param_disable_sendpage(void);
bool drbd_h_param_allow_oos(void);
int drbd_h_param_proc_details(void);
u32 drbd_h_param_enable_faults(void);
u32 drbd_h_param_fault_devs(void);
u32 drbd_h_param_fault_rate(void);
void drbd_h_param_count_fault(void);
void drbd_h_param_usermode_helper(char *out, size_t bytes);
const char *drbd_h_source_version(void);

/* The module's own reference count. */
bool drbd_h_module_get(void);
void drbd_h_module_put(void);

/* Threads. */
void drbd_h_completion_init(struct completion *done);
void drbd_h_thread_fifo_low(void);
size_t drbd_h_current_task(void);
/* Lets the current thread run on the processors of a hexadecimal mask; empty, or none of them online: on all. */
void drbd_h_thread_set_cpus(const char *text, size_t bytes);

#endif
