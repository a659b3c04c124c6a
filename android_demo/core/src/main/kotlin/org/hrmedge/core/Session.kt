package org.hrmedge.core

import java.io.Closeable

/**
 * One sequence over one loaded model: token ids in, logits out.
 *
 * The first call reads the prompt in both directions, later calls are causal. For one thread at a
 * time, except [cancel].
 */
interface Session : Closeable {
    /** Prompt and answer together, in tokens. */
    val maxContext: Int

    /** Whether a call of several tokens computes what as many calls would: drafts are exact. */
    val batches: Boolean get() = true

    /** Tokens in the KV cache. */
    val length: Int

    /** Forgets everything and reads [ids] as the prefix; logits `[V]` of the last position. */
    fun prefill(ids: IntArray): FloatArray

    /** Appends [ids], causally; logits `[V]` of each. They are valid until the next call. */
    fun decode(ids: IntArray): List<FloatArray>

    /** Forgets the last [n] tokens; the first one of a sequence stays. */
    fun rewind(n: Int)

    /** From any thread: the call under way and all further ones throw [Cancelled]. */
    fun cancel()

    /** Calls may be made again after [cancel]. */
    fun resume()
}
