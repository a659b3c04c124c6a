package org.hrmedge.core

import java.io.Closeable

/** How an answer ended. */
enum class Finish { END, LENGTH, STOPPED, REPETITION }

/**
 * Times of one answer in seconds and tokens per second.
 *
 * Each of [calls] after the prefix decoded one token and some drafted ones, of which [accepted]
 * stood.
 */
data class Stats(
    val promptTokens: Int,
    val answerTokens: Int,
    val ttft: Double,
    val prefillTps: Double,
    val decodeTps: Double,
    val calls: Int = 0,
    val drafted: Int = 0,
    val accepted: Int = 0,
)

/** A whole answer; [tokens] ends with the end-of-answer token, empty where an engine hides them. */
data class Answer(val text: String, val tokens: List<Int>, val finish: Finish, val stats: Stats)

/** A loaded bundle that answers questions, one at a time. */
interface Engine : Closeable {
    val manifest: Manifest

    /** Prompt and answer together, in tokens. */
    val maxContext: Int

    /**
     * Answers [question], giving each bit of text to [onText] as it comes. Throws [Problem].
     *
     * Blocks; [stop] ends it from another thread, within one call of the model.
     */
    fun answer(question: String, settings: Settings, stop: Stop, onText: (String) -> Unit): Answer

    /** What the benchmark drives; null where the engine does not show it. */
    val session: Session?
}

/** The stop button of one answer; may be pressed before, during or after it. */
class Stop {
    private var action: (() -> Unit)? = null

    /** Whether it was pressed. */
    @Volatile
    var requested = false
        private set

    /** Presses it. */
    @Synchronized
    fun request() {
        requested = true
        action?.invoke()
    }

    /** Runs [work] with [action] bound to the button, also if it was pressed already. */
    fun <T> during(action: () -> Unit, work: () -> T): T {
        bind(action)
        try {
            return work()
        } finally {
            bind(null)
        }
    }

    @Synchronized
    private fun bind(action: (() -> Unit)?) {
        this.action = action
        if (requested) action?.invoke()
    }
}
