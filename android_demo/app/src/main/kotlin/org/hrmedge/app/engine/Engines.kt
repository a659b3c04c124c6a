package org.hrmedge.app.engine

import java.io.File
import org.hrmedge.core.Bundle
import org.hrmedge.core.Decoding
import org.hrmedge.core.Engine
import org.hrmedge.core.Problem
import org.hrmedge.core.TokenEngine
import org.hrmedge.core.fittingContext
import org.hrmedge.core.fittingProgram
import org.hrmedge.core.readTokenizer

/** Whether the app was built with ExecuTorch's classes; build_apk.sh leaves them out. */
private fun hasExecuTorch(): Boolean = try {
    Class.forName("org.pytorch.executorch.extension.llm.LlmModule", false, Limits::class.java.classLoader)
    true
} catch (_: ClassNotFoundException) {
    false
}

/** What a session may take of this device. */
data class Limits(
    val context: Int,
    val threads: Int,
    val memory: Long,
    /** A plan that the bundle's export measured, by its name; any other text means all passes. */
    val plan: String = "",
)

/**
 * Loads [bundle] with the engine that its target asks for. Throws [Problem].
 *
 * The context is shortened to what fits into the memory that is available.
 */
fun openEngine(bundle: Bundle, limits: Limits, cache: CacheMemory): Engine {
    val decoding = bundle.manifest.plan(limits.plan)?.decoding ?: Decoding()
    val manifest = bundle.manifest.with(decoding)
    val wanted = minOf(limits.context, manifest.maxSeqLen)
    return when (manifest.target) {
        "onnx" -> {
            val tokenizer = readTokenizer(File(bundle.directory, "tokenizer.json"))
            val context = fittingContext(manifest, wanted, limits.memory)
            val session = OnnxSession(bundle, context, limits.threads, cache, decoding)
            try {
                TokenEngine(manifest, session, tokenizer)
            } catch (problem: Problem) {
                session.close()
                throw problem
            }
        }
        "executorch" -> {
            if (!hasExecuTorch()) throw Problem("This build of the app has no ExecuTorch; take an ONNX bundle.")
            ExecuTorchEngine(bundle, fittingProgram(manifest, wanted, limits.memory))
        }
        else -> throw Problem(
            "This app runs onnx and executorch bundles, this one is for ${manifest.target}.",
        )
    }
}
