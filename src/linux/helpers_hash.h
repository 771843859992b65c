/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Wrappers for hash algorithms of the kernel's crypto API, by their names. An algorithm is a `struct crypto_shash`, a
 * calculation under way a `struct shash_desc` in memory of the caller.
 */
#ifndef DRBD_HELPERS_HASH_H
#define DRBD_HELPERS_HASH_H

#include <linux/types.h>

struct drbd_h_hash;

struct drbd_h_hash *drbd_h_hash_alloc(const char *name, const u8 *key, unsigned int key_bytes);
void drbd_h_hash_free(struct drbd_h_hash *hash);
unsigned int drbd_h_hash_digest_bytes(struct drbd_h_hash *hash);
unsigned int drbd_h_hash_state_bytes(struct drbd_h_hash *hash);

int drbd_h_hash_init(void *state, struct drbd_h_hash *hash);
int drbd_h_hash_update(void *state, const u8 *data, unsigned int bytes);
int drbd_h_hash_final(void *state, u8 *digest);
void drbd_h_hash_forget(void *state);

#endif
