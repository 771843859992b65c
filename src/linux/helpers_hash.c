// SPDX-License-Identifier: GPL-2.0
/*
 * Wrappers for hash algorithms; see helpers_hash.h.
 */
#include <crypto/hash.h>
#include <linux/err.h>

#include "helpers_hash.h"

static struct crypto_shash *tfm_of(struct drbd_h_hash *hash)
{
	return (struct crypto_shash *)hash;
}

/* May load a module. A key belongs to keyed algorithms (`hmac(...)`) only. */
struct drbd_h_hash *drbd_h_hash_alloc(const char *name, const u8 *key, unsigned int key_bytes)
{
	struct crypto_shash *tfm = crypto_alloc_shash(name, 0, 0);
	int error;

	if (IS_ERR(tfm) || !key)
		return (struct drbd_h_hash *)tfm;
	error = crypto_shash_setkey(tfm, key, key_bytes);
	if (error) {
		crypto_free_shash(tfm);
		return ERR_PTR(error);
	}
	return (struct drbd_h_hash *)tfm;
}

void drbd_h_hash_free(struct drbd_h_hash *hash)
{
	crypto_free_shash(tfm_of(hash));
}

unsigned int drbd_h_hash_digest_bytes(struct drbd_h_hash *hash)
{
	return crypto_shash_digestsize(tfm_of(hash));
}

/* Size of a calculation under way. */
unsigned int drbd_h_hash_state_bytes(struct drbd_h_hash *hash)
{
	return sizeof(struct shash_desc) + crypto_shash_descsize(tfm_of(hash));
}

int drbd_h_hash_init(void *state, struct drbd_h_hash *hash)
{
	struct shash_desc *desc = state;

	desc->tfm = tfm_of(hash);
	return crypto_shash_init(desc);
}

int drbd_h_hash_update(void *state, const u8 *data, unsigned int bytes)
{
	return crypto_shash_update(state, data, bytes);
}

int drbd_h_hash_final(void *state, u8 *digest)
{
	return crypto_shash_final(state, digest);
}

/* Nothing of the data stays in memory. */
void drbd_h_hash_forget(void *state)
{
	shash_desc_zero(state);
}
