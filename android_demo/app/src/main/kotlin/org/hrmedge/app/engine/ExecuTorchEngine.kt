package org.hrmedge.app.engine

import java.io.File
import org.hrmedge.core.Answer
import org.hrmedge.core.Bundle
import org.hrmedge.core.Engine
import org.hrmedge.core.Finish
import org.hrmedge.core.Manifest
import org.hrmedge.core.Problem
import org.hrmedge.core.Session
import org.hrmedge.core.Settings
import org.hrmedge.core.Stats
import org.hrmedge.core.Stop
import org.hrmedge.core.readSpellings
import org.json.JSONObject
import org.pytorch.executorch.extension.llm.LlmCallback
import org.pytorch.executorch.extension.llm.LlmModule

/**
 * Answers by ExecuTorch's own runner, which tokenizes, samples and counts by itself.
 *
 * It knows a temperature and no other sampling setting. [maxContext] is that of one of the bundle's programs,
 * which share their weights.
 */
class ExecuTorchEngine(private val bundle: Bundle, override val maxContext: Int) : Engine {
    override val manifest: Manifest = bundle.manifest
    override val session: Session? = null

    private val tokenizer = File(bundle.directory, "tokenizer.json")
    private val ends = readSpellings(tokenizer, manifest.ends)
    private var module: LlmModule? = null
    private var temperature = Double.NaN

    init {
        bundle.verify() // the runner does not survive a damaged program
    }

    override fun answer(
        question: String,
        settings: Settings,
        stop: Stop,
        onText: (String) -> Unit,
    ): Answer {
        val prefix = manifest.prompt.prefix(question, settings.conditions)
        val runner = runner(settings.temperature)
        val listener = Listener(stop, runner, settings.maxTokens, ends, onText)
        runner.resetContext() // the next call is a prefix, bidirectional
        val status = stop.during(runner::stop) {
            if (stop.requested) 0 else runner.generate(prefix, maxContext, listener, false)
        }
        if (status != 0) throw Problem("ExecuTorch failed with error $status.")
        return listener.answer() ?: throw Problem( // it tells the log why, and no one else
            "ExecuTorch gave no answer. It has room for $maxContext tokens; is the question longer?",
        )
    }

    override fun close() {
        module?.resetNative()
        module = null
    }

    /** The module takes its temperature when it is made. */
    private fun runner(wanted: Double): LlmModule {
        module?.let { if (wanted == temperature) return it }
        close()
        val name = if (maxContext == manifest.maxSeqLen) "model.pte" else "model-$maxContext.pte"
        val model = File(bundle.directory, name).path
        val weights = File(bundle.directory, "model.ptd") // of several programs
        return try {
            val made = if (weights.isFile) {
                LlmModule(model, tokenizer.path, wanted.toFloat(), weights.path)
            } else {
                LlmModule(model, tokenizer.path, wanted.toFloat())
            }
            module = made
            temperature = wanted
            made
        } catch (error: RuntimeException) {
            throw Problem("ExecuTorch cannot load the model (${error.message}).")
        }
    }
}

/**
 * Gathers what the runner reports: pieces of text, the end token among them as it is spelled, and
 * statistics, a line of JSON with times in ms.
 */
private class Listener(
    private val stop: Stop,
    private val runner: LlmModule,
    private val maxTokens: Int,
    private val ends: Set<String>,
    private val onText: (String) -> Unit,
) : LlmCallback {
    private val text = StringBuilder()
    private var pieces = 0
    private var ended = false
    private var stats: Stats? = null

    override fun onResult(result: String) {
        ended = result in ends
        if (ended) return
        text.append(result)
        onText(result)
        if (++pieces >= maxTokens) runner.stop()
    }

    override fun onStats(stats: String) {
        val raw = JSONObject(stats)
        val start = raw.optLong("inference_start_ms")
        val prefilled = raw.optLong("prompt_eval_end_ms")
        val first = raw.optLong("first_token_ms")
        val end = raw.optLong("inference_end_ms")
        val prompt = raw.optInt("prompt_tokens")
        val answer = raw.optInt("generated_tokens")
        this.stats = Stats(
            promptTokens = prompt,
            answerTokens = answer,
            ttft = (first - start) / 1e3,
            prefillTps = rate(prompt, prefilled - start),
            decodeTps = rate(answer - 1, end - first),
        )
    }

    /** The answer; null if the runner did not even begin, though nobody stopped it. */
    fun answer(): Answer? {
        val stats = stats ?: if (stop.requested) Stats(0, 0, 0.0, 0.0, 0.0) else return null
        // it keeps a character that was cut off, and puts it before all later answers of the process
        if (pieces == 0 && !ended && stats.answerTokens > 0) {
            throw Problem("ExecuTorch holds the text back, as it is no valid UTF-8; start the app again.")
        }
        val finish = when {
            ended -> Finish.END
            stop.requested -> Finish.STOPPED
            else -> Finish.LENGTH
        }
        return Answer(text.toString(), emptyList(), finish, stats)
    }

    private fun rate(tokens: Int, milliseconds: Long) =
        if (tokens < 1 || milliseconds <= 0) 0.0 else tokens * 1e3 / milliseconds
}
