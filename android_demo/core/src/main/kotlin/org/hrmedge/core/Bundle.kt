package org.hrmedge.core

import java.io.File
import java.io.IOException
import java.io.InputStream
import java.security.MessageDigest
import org.json.JSONException
import org.json.JSONObject

/**
 * The cache that a session allocates, with [bits] a value, or [hBits] in the H stack's passes. Where
 * scales are [fitted] to each slot, slots cannot be shared.
 */
data class KVCache(val bits: Int, val hBits: Int, val bytesPerToken: Long, val fitted: Boolean) {
    /** "8", or "4 and 8" where the stacks differ. */
    val label: String get() = if (hBits == bits) "$bits" else "$bits and $hBits"
}

/** A file of the bundle: its size in bytes and the hex digest of its content. */
data class BundleFile(val size: Long, val sha256: String)

/** The sizes of the network that memory and buffers depend on. */
data class Architecture(
    val vocabSize: Int,
    val hiddenSize: Int,
    val intermediateSize: Int,
    val heads: Int,
    val headDim: Int,
)

/** Everything that manifest.json says before a model file is opened; see docs/bundle.md. */
data class Manifest(
    val target: String,
    val architecture: Architecture,
    val recurrence: Recurrence,
    val bits: Int,
    val cache: KVCache,
    val maxSeqLen: Int,
    /** Shorter lengths for which an ExecuTorch bundle has a program of its own. */
    val contexts: List<Int>,
    val ends: Set<Int>,
    val prompt: PromptFormat,
    val files: Map<String, BundleFile>,
    /** What the export's own measurements recommend for speed; null where they were not made. */
    val fast: Decoding? = null,
    /** All that the export measured, [fast] among them. */
    val plans: List<MeasuredPlan> = emptyList(),
) {
    /** Bytes of all files together. */
    val size: Long get() = files.values.sumOf { it.size }

    /** The measured plan [name], or [RECOMMENDED]'s; null, which is all passes, for any other text. */
    fun plan(name: String): MeasuredPlan? =
        plans.find { if (name == RECOMMENDED) it.decoding == fast else it.name == name }

    /** This bundle with the cache that [decoding] takes. Throws [Problem] if it cannot be shared. */
    fun with(decoding: Decoding): Manifest {
        if (decoding.share == Share.NONE) return this
        if (cache.fitted) throw Problem("The cache's scales are fitted to each slot, so slots cannot be shared.")
        val kept = recurrence.sharedSlots(decoding.share).toSet()
        val bits = kept.sumOf { if (recurrence.inH(it)) cache.hBits else cache.bits }
        val size = 2L * architecture.heads * architecture.headDim * bits / 8
        return copy(cache = cache.copy(bytesPerToken = size))
    }

    companion object {
        const val NAME = "manifest.json"
        const val RECOMMENDED = "recommended"
        private const val FORMAT_VERSION = 1

        /** Reads the text of a manifest. Throws [Problem] if it is odd or of a later version. */
        fun parse(text: String): Manifest = try {
            val raw = JSONObject(text)
            val version = raw.getInt("format_version")
            if (version != FORMAT_VERSION) {
                throw Problem(
                    "The bundle has format $version, this app reads $FORMAT_VERSION; " +
                        if (version > FORMAT_VERSION) "update the app." else "export it again.",
                )
            }
            read(raw)
        } catch (error: JSONException) {
            throw Problem("$NAME is damaged (${error.message}); copy or export the bundle again.")
        }

        private fun read(raw: JSONObject): Manifest {
            val model = raw.getJSONObject("model")
            val cache = raw.getJSONObject("kv_cache")
            val files = raw.getJSONObject("files")
            val ends = raw.getJSONArray("eos_token_ids")
            return Manifest(
                target = raw.getString("target"),
                architecture = architecture(model),
                recurrence = Recurrence(
                    hCycles = model.getInt("H_cycles"),
                    lCycles = model.getInt("L_cycles"),
                    layers = model.getInt("num_hidden_layers"),
                ),
                bits = raw.getJSONObject("quantization").getInt("bits"),
                cache = KVCache(
                    bits = cache.getInt("bits"),
                    hBits = cache.optInt("h_bits", cache.getInt("bits")),
                    bytesPerToken = cache.getLong("bytes_per_token"),
                    fitted = cache.optBoolean("fitted", cache.getInt("bits") == 4),
                ),
                maxSeqLen = raw.getInt("max_seq_len"),
                contexts = raw.optJSONArray("contexts").let { lengths ->
                    (0 until (lengths?.length() ?: 0)).map { lengths!!.getInt(it) }
                },
                ends = (0 until ends.length()).map { ends.getInt(it) }.toSet(),
                prompt = PromptFormat.read(raw),
                files = files.keyList().associateWith { name ->
                    plainName(name)
                    val file = files.getJSONObject(name)
                    BundleFile(file.getLong("size"), file.getString("sha256"))
                },
                fast = measured(raw)?.getJSONObject("recommended")?.let(::decoding),
                plans = measured(raw)?.optJSONArray("plans").let { plans ->
                    (0 until (plans?.length() ?: 0)).map { measuredPlan(plans!!.getJSONObject(it)) }
                },
            )
        }

        private fun measured(raw: JSONObject): JSONObject? =
            raw.optJSONObject("quality")?.optJSONObject("fast")

        private fun measuredPlan(raw: JSONObject) = MeasuredPlan(
            decoding(raw),
            work = raw.getDouble("work"),
            memory = raw.getDouble("memory"),
            sameAnswers = raw.getDouble("same_answers"),
        )

        private fun decoding(raw: JSONObject): Decoding {
            val share = raw.getString("kv_share")
            val counts = raw.getJSONArray("l_cycles")
            return Decoding(
                lCycles = (0 until counts.length()).map { counts.getInt(it) },
                share = Share.entries.find { it.name.lowercase() == share }
                    ?: throw Problem("$NAME recommends to share slots by $share, which this app cannot."),
            )
        }

        private fun architecture(model: JSONObject): Architecture {
            val hidden = model.getInt("hidden_size")
            val heads = model.getInt("num_attention_heads")
            return Architecture(
                vocabSize = model.getInt("vocab_size"),
                hiddenSize = hidden,
                intermediateSize = model.getInt("intermediate_size"),
                heads = heads,
                headDim = model.optInt("head_dim", hidden / heads),
            )
        }

        private fun plainName(name: String) {
            if (name.isEmpty() || name == ".." || name.any { it == '/' || it == '\\' }) {
                throw Problem("$NAME names a file \"$name\" outside of the bundle; it is not safe.")
            }
        }
    }
}

/** An opened bundle: the manifest was read and its files are there in full size. */
class Bundle private constructor(val directory: File, val manifest: Manifest) {
    /** Hashes every file. Throws [Problem] naming the first one whose content has changed. */
    fun verify(progress: (Double) -> Unit = {}) = reading {
        var done = 0L
        for ((name, expected) in manifest.files) {
            val digest = Digest()
            File(directory, name).inputStream().use { input ->
                input.blocks { block, length ->
                    digest.add(block, length)
                    done += length
                    progress(done.toDouble() / manifest.size)
                }
            }
            if (digest.hex() != expected.sha256) throw altered(name)
        }
    }

    companion object {
        /** Opens [directory], checking the size of each file. Throws [Problem]. */
        fun open(directory: File): Bundle {
            val text = File(directory, Manifest.NAME)
            if (!text.isFile) throw Problem("${directory.name} is no bundle: it has no ${text.name}.")
            val manifest = Manifest.parse(reading { text.readText() })
            for ((name, expected) in manifest.files) {
                val file = File(directory, name)
                if (!file.isFile) throw missing(name)
                if (file.length() != expected.size) throw truncated(name, file.length(), expected.size)
            }
            return Bundle(directory, manifest)
        }

        /**
         * Copies a bundle into [target], hashing on the way; nothing is left of one that fails.
         *
         * [source] opens a file of the bundle by its name, null if there is none. Throws [Problem].
         */
        fun import(
            target: File,
            freeSpace: Long,
            source: (String) -> InputStream?,
            progress: (Double) -> Unit = {},
        ): Bundle {
            val text = reading { source(Manifest.NAME)?.use { it.readBytes().decodeToString() } }
                ?: throw Problem("The folder is no bundle: it has no ${Manifest.NAME}.")
            val manifest = Manifest.parse(text)
            if (manifest.size > freeSpace) {
                throw Problem(
                    "The bundle takes ${mebibytes(manifest.size)}, ${mebibytes(freeSpace)} are free; " +
                        "make room first.",
                )
            }
            val partial = File(target.parentFile, target.name + ".partial")
            partial.deleteRecursively()
            try {
                partial.mkdirs()
                reading {
                    copyFiles(manifest, partial, source, progress)
                    File(partial, Manifest.NAME).writeText(text)
                }
                target.deleteRecursively()
                if (!partial.renameTo(target)) throw Problem("${target.name} cannot be stored.")
            } finally {
                partial.deleteRecursively()
            }
            return open(target)
        }

        private fun copyFiles(
            manifest: Manifest,
            into: File,
            source: (String) -> InputStream?,
            progress: (Double) -> Unit,
        ) {
            var done = 0L
            for ((name, expected) in manifest.files) {
                val digest = Digest()
                val input = source(name) ?: throw missing(name)
                val before = done
                input.use {
                    File(into, name).outputStream().use { output ->
                        input.blocks { block, length ->
                            output.write(block, 0, length)
                            digest.add(block, length)
                            done += length
                            progress(done.toDouble() / manifest.size)
                        }
                    }
                }
                if (done - before != expected.size) throw truncated(name, done - before, expected.size)
                if (digest.hex() != expected.sha256) throw altered(name)
            }
        }

        private fun missing(name: String) =
            Problem("$name is missing from the bundle; copy or export it again.")

        private fun truncated(name: String, size: Long, expected: Long) =
            Problem("$name has $size bytes instead of $expected; copy or export the bundle again.")

        private fun altered(name: String) =
            Problem("$name differs from what was exported; copy or export the bundle again.")
    }
}

/** What [work] gives; a file that cannot be read or written becomes a [Problem]. */
internal inline fun <T> reading(work: () -> T): T = try {
    work()
} catch (error: IOException) {
    throw Problem("The bundle cannot be read or stored (${error.message}).")
}

private class Digest {
    private val sha256 = MessageDigest.getInstance("SHA-256")

    fun add(block: ByteArray, length: Int) = sha256.update(block, 0, length)

    fun hex(): String = sha256.digest().joinToString("") { "%02x".format(it) }
}

private inline fun InputStream.blocks(use: (ByteArray, Int) -> Unit) {
    val block = ByteArray(1 shl 16)
    while (true) {
        val length = read(block)
        if (length < 0) return
        use(block, length)
    }
}

internal fun JSONObject.keyList(): List<String> = keys().asSequence().toList()
