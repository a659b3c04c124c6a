package org.hrmedge.app.engine

import ai.onnxruntime.NodeInfo
import ai.onnxruntime.OnnxJavaType
import ai.onnxruntime.OnnxTensor
import ai.onnxruntime.OrtEnvironment
import ai.onnxruntime.OrtException
import ai.onnxruntime.OrtLoggingLevel
import ai.onnxruntime.OrtSession
import ai.onnxruntime.TensorInfo
import java.io.File
import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.nio.FloatBuffer
import java.nio.LongBuffer
import org.hrmedge.core.Bundle
import org.hrmedge.core.Cancelled
import org.hrmedge.core.Decoding
import org.hrmedge.core.Problem
import org.hrmedge.core.Session
import org.hrmedge.core.Share

/** Where the KV cache lies. */
fun interface CacheMemory {
    /** So many bytes, zeroed, at an address that stays. */
    fun allocate(bytes: Int): ByteBuffer

    /** Gives [buffer] back; without it, that is left to the garbage collector. */
    fun release(buffer: ByteBuffer) = Unit
}

/**
 * Executes an ONNX bundle over KV buffers that the graph writes in place.
 *
 * The model is loaded by its path, so that its weights are mapped and never enter the Java heap.
 * Past and present of a slot are one tensor: bound as input and pinned as output. Throws
 * [Problem] where ONNX Runtime refuses the model or memory runs out.
 */
class OnnxSession(
    bundle: Bundle,
    override val maxContext: Int,
    threads: Int,
    memory: CacheMemory,
    decoding: Decoding = Decoding(),
) : Session {
    private val environment = OrtEnvironment.getEnvironment(OrtLoggingLevel.ORT_LOGGING_LEVEL_ERROR)
    private val vocabSize = bundle.manifest.architecture.vocabSize

    /**
     * How many positions' logits a call returns. The Java API takes no optional inputs, so this
     * one is given as an initializer that lies in our memory and is changed between calls.
     */
    private val keep = longs(1)
    private val kept = OnnxTensor.createTensor(environment, keep, longArrayOf(1))

    /** Which passes an answer's tokens take, likewise; the graph reads a prefix by all of them. */
    private val passes = orClose(kept) { flags(bundle.manifest.recurrence.plan(decoding.lCycles)) }
    private val session = orClose(kept, passes) {
        load(File(bundle.directory, "model.onnx"), threads)
    }
    private val cache = orClose(session, kept, passes) {
        val slots = bundle.manifest.recurrence.sharedSlots(decoding.share)
        KVTensors(environment, session.inputInfo, maxContext, memory, slots)
    }
    private val mask = longs(maxContext).apply { while (hasRemaining()) put(1) }
    private val ids = longs(maxContext)
    private var logits = floats(vocabSize)
    private var rows = listOf(FloatArray(vocabSize))

    private val lock = Any()
    private var cancelled = false
    private var running: OrtSession.RunOptions? = null

    /** Within a call, a pass would find its own tokens where the last pass's should be. */
    override val batches = decoding.share == Share.NONE

    override var length = 0
        private set

    override fun prefill(ids: IntArray): FloatArray {
        length = 0
        return run(ids, keep = 1)[0]
    }

    override fun decode(ids: IntArray): List<FloatArray> {
        check(length > 0) { "decode before prefill" }
        return run(ids, keep = ids.size)
    }

    override fun rewind(n: Int) {
        check(n in 0 until length) { "$n of $length" }
        length -= n
    }

    override fun cancel() = synchronized(lock) {
        cancelled = true
        running?.setTerminate(true) ?: Unit
    }

    override fun resume() = synchronized(lock) { cancelled = false }

    override fun close() {
        session.close()
        cache.close()
        kept.close()
        passes.close()
    }

    /** Logits of the last [keep] of [tokens]. */
    private fun run(tokens: IntArray, keep: Int): List<FloatArray> {
        val total = length + tokens.size
        check(tokens.isNotEmpty() && total <= maxContext) { "$length + ${tokens.size} of $maxContext" }
        ids.clear()
        for (token in tokens) ids.put(token.toLong())
        makeRoom(keep)
        this.keep.put(0, keep.toLong())
        call(tokens.size, total, keep)
        length = total
        logits.rewind()
        for (row in 0 until keep) logits.get(rows[row])
        return rows.subList(0, keep)
    }

    private fun call(size: Int, total: Int, keep: Int) {
        val options = begin()
        try {
            tensor(ids, size).use { inputIds ->
                tensor(mask, total).use { attentionMask ->
                    tensor(logits, keep).use { result ->
                        val own = mapOf("input_ids" to inputIds, "attention_mask" to attentionMask)
                        val outputs = cache.present + ("logits" to result)
                        session.run(cache.past + own, emptySet(), outputs, options).close()
                    }
                }
            }
        } catch (error: OrtException) {
            if (synchronized(lock) { cancelled }) throw Cancelled()
            throw Problem("The model failed (${error.message?.lineSequence()?.first()}).")
        } finally {
            synchronized(lock) { running = null }
            options.close()
        }
    }

    private fun begin(): OrtSession.RunOptions = synchronized(lock) {
        if (cancelled) throw Cancelled()
        OrtSession.RunOptions().also { running = it }
    }

    /** Buffers for logits grow with the longest draft and stay. */
    private fun makeRoom(keep: Int) {
        if (rows.size >= keep) return
        logits = floats(keep * vocabSize)
        rows = List(keep) { FloatArray(vocabSize) }
    }

    private fun tensor(buffer: LongBuffer, size: Int): OnnxTensor {
        buffer.position(0).limit(size)
        return OnnxTensor.createTensor(environment, buffer, longArrayOf(1, size.toLong()))
    }

    private fun tensor(buffer: FloatBuffer, rows: Int): OnnxTensor {
        buffer.position(0).limit(rows * vocabSize)
        val shape = longArrayOf(1, rows.toLong(), vocabSize.toLong())
        return OnnxTensor.createTensor(environment, buffer, shape)
    }

    private fun flags(values: BooleanArray): OnnxTensor {
        val bytes = ByteBuffer.allocateDirect(values.size).order(ByteOrder.nativeOrder())
        for (value in values) bytes.put(if (value) 1 else 0)
        bytes.rewind()
        return OnnxTensor.createTensor(environment, bytes, longArrayOf(values.size.toLong()), OnnxJavaType.BOOL)
    }

    private fun load(model: File, threads: Int): OrtSession {
        val options = OrtSession.SessionOptions()
        return try {
            options.setIntraOpNumThreads(threads)
            options.addInitializer("logits_to_keep", kept)
            options.addInitializer("passes", passes)
            environment.createSession(model.path, options)
        } catch (error: OrtException) {
            val reason = error.message?.lineSequence()?.first()
            throw Problem("ONNX Runtime ${environment.version} cannot load the model ($reason).")
        } finally {
            options.close()
        }
    }
}

/**
 * A tensor for each of [inputs] that is a past, `[1, heads, context, width]`, over memory that stays
 * where it is. The graph says what type and width it has: slots may differ in bits. A slot lies in
 * the place of slot `kept[slot]`.
 */
private class KVTensors(
    environment: OrtEnvironment,
    inputs: Map<String, NodeInfo>,
    context: Int,
    private val memory: CacheMemory,
    private val kept: IntArray,
) : AutoCloseable {
    private val buffers = ArrayList<ByteBuffer>()
    private val tensors = HashMap<String, OnnxTensor>() // by the place
    val past = HashMap<String, OnnxTensor>()
    val present = HashMap<String, OnnxTensor>()

    init {
        try {
            for ((name, input) in inputs.filterKeys { it.startsWith(PAST) }) {
                val (slot, part) = name.removePrefix(PAST).split(".")
                val tensor = tensors.getOrPut("${kept[slot.toInt()]}.$part") { make(environment, input, context) }
                past[name] = tensor
                present["present." + name.removePrefix(PAST)] = tensor
            }
        } catch (error: Throwable) {
            close()
            throw if (error is OutOfMemoryError) tooLarge(context) else error
        }
    }

    private fun make(environment: OrtEnvironment, input: NodeInfo, context: Int): OnnxTensor {
        val info = input.info as TensorInfo
        val (_, heads, _, width) = info.shape.toList()
        val shape = longArrayOf(1, heads, context.toLong(), width)
        val bytes = shape.fold(info.type.size.toLong(), Long::times)
        if (bytes > Int.MAX_VALUE) throw tooLarge(context)
        val buffer = memory.allocate(bytes.toInt()).order(ByteOrder.nativeOrder())
        buffers.add(buffer)
        return OnnxTensor.createTensor(environment, buffer, shape, info.type)
    }

    override fun close() {
        tensors.values.forEach(OnnxTensor::close)
        buffers.forEach(memory::release)
    }

    private fun tooLarge(context: Int) =
        Problem("There is no memory for a context of $context tokens; choose a shorter one.")

    private companion object {
        const val PAST = "past_key_values."
    }
}

/** What [open] gives; if that fails, [opened] are closed. */
private inline fun <T> orClose(vararg opened: AutoCloseable, open: () -> T): T = try {
    open()
} catch (error: Throwable) {
    opened.forEach(AutoCloseable::close)
    throw error
}

private fun longs(size: Int): LongBuffer =
    ByteBuffer.allocateDirect(8 * size).order(ByteOrder.nativeOrder()).asLongBuffer()

private fun floats(size: Int): FloatBuffer =
    ByteBuffer.allocateDirect(4 * size).order(ByteOrder.nativeOrder()).asFloatBuffer()
