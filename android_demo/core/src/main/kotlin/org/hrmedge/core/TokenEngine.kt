package org.hrmedge.core

/** Answers over a [Session], token by token: the tokenizer, the sampler and the drafts are ours. */
class TokenEngine(
    override val manifest: Manifest,
    override val session: Session,
    private val tokenizer: Tokenizer,
) : Engine {
    private val learned = Experience()

    init {
        val vocabulary = manifest.architecture.vocabSize
        if (tokenizer.vocabSize > vocabulary) {
            throw Problem(
                "The tokenizer has ${tokenizer.vocabSize} tokens, the model $vocabulary; " +
                    "they do not belong together.",
            )
        }
    }

    override val maxContext: Int get() = session.maxContext

    override fun answer(
        question: String,
        settings: Settings,
        stop: Stop,
        onText: (String) -> Unit,
    ): Answer {
        val prefix = tokenizer.encode(manifest.prompt.prefix(question, settings.conditions))
        return answer(prefix, settings, stop, onText)
    }

    /** [answer] for a prefix in tokens. */
    fun answer(prefix: IntArray, settings: Settings, stop: Stop, onText: (String) -> Unit): Answer {
        if (prefix.isEmpty()) throw Problem("The question has no tokens.")
        if (prefix.size >= maxContext) {
            throw Problem(
                "The question has ${prefix.size} tokens, there is room for $maxContext with the " +
                    "answer; shorten it.",
            )
        }
        val limit = minOf(settings.maxTokens, maxContext - prefix.size)
        val paces = if (settings.speculate && session.batches) lookups(prefix, learned) else emptyList()
        val text = StreamedText(tokenizer.stream(), onText)
        val loop = DecodeLoop(session, Sampler(settings), limit, manifest.ends, paces, learned)
        val clock = Clock(prefix.size)
        val finish = try {
            stop.during(session::cancel) {
                loop.run(prefix, clock) { token ->
                    if (token !in manifest.ends) text.push(token)
                    !stop.requested
                }
            }
        } catch (_: Cancelled) {
            Finish.STOPPED
        } finally {
            session.resume()
        }
        return Answer(text.toString(), loop.tokens, finish, clock.stats(loop))
    }

    override fun close() = session.close()
}

/** The answer's whole characters; one whose bytes do not all come is left out, as in Python. */
private class StreamedText(private val stream: TextStream, private val onText: (String) -> Unit) {
    private val all = StringBuilder()

    fun push(token: Int) = add(stream.push(token))

    private fun add(text: String) {
        if (text.isEmpty()) return
        all.append(text)
        onText(text)
    }

    override fun toString() = all.toString()
}

/** The one loop with and without drafts: from a prefix to drawn tokens. */
internal class DecodeLoop(
    private val session: Session,
    private val sampler: Sampler,
    private val limit: Int,
    private val ends: Set<Int>,
    private val paces: List<Pace>,
    private val learned: Experience,
) {
    val tokens = ArrayList<Int>()
    private val loop = if (sampler.endsLoops) Repetition() else null
    private var looped = false
    var calls = 0
        private set
    var drafted = 0
        private set
    var accepted = 0
        private set

    /** Draws until an end token, the limit, or until [onToken] says no. */
    fun run(prefix: IntArray, clock: Clock, onToken: (Int) -> Boolean): Finish {
        var rows = listOf(session.prefill(prefix))
        clock.prefilled()
        var draft = emptyList<Int>()
        var guesses = emptyList<List<Int>>()
        while (true) {
            val drawn = draw(rows, draft)
            settle(drawn, draft, guesses)
            for (token in drawn) {
                clock.sampled()
                if (!onToken(token)) return Finish.STOPPED
            }
            if (tokens.last() in ends) return Finish.END
            if (looped) return Finish.REPETITION
            if (tokens.size >= limit) return Finish.LENGTH
            guesses = paces.map { it.propose(tokens) }
            draft = draft(guesses)
            rows = decode(intArrayOf(tokens.last()) + draft)
        }
    }

    /** Appends tokens, one for each row as long as the draft before it was right. */
    private fun draw(rows: List<FloatArray>, draft: List<Int>): List<Int> {
        val first = tokens.size
        for ((i, row) in rows.withIndex()) {
            tokens.add(sampler.sample(row))
            looped = loop?.push(tokens.last()) ?: false
            if (looped || tokens.last() in ends || i == draft.size || tokens.last() != draft[i]) break
        }
        return tokens.subList(first, tokens.size).toList()
    }

    /** Forgets drafts that were wrong, and lets every drafter learn. */
    private fun settle(drawn: List<Int>, draft: List<Int>, guesses: List<List<Int>>) {
        val stood = drawn.size - 1
        session.rewind(draft.size - stood)
        drafted += draft.size
        accepted += stood
        for ((pace, guess) in paces.zip(guesses)) pace.learn(guess, drawn)
    }

    /** The tokens to verify: those of the first drafter whose guess is worth it. */
    private fun draft(guesses: List<List<Int>>): List<Int> {
        val most = limit - tokens.size - 1
        for ((pace, guess) in paces.zip(guesses)) {
            if (guess.isEmpty()) continue
            val worth = pace.worth(most)
            if (worth > 0) return guess.subList(0, worth)
        }
        return emptyList()
    }

    private fun decode(ids: IntArray): List<FloatArray> {
        val started = System.nanoTime()
        val rows = session.decode(ids)
        learned.observe(ids.size, (System.nanoTime() - started) / 1e9)
        calls++
        return rows
    }
}

/** Times one answer. */
internal class Clock(private val promptTokens: Int) {
    private val start = System.nanoTime()
    private var ready = start
    private var first = start
    private var last = start
    private var count = 0

    fun prefilled() {
        ready = System.nanoTime()
    }

    fun sampled() {
        last = System.nanoTime()
        if (count++ == 0) first = last
    }

    fun stats(loop: DecodeLoop): Stats = Stats(
        promptTokens = promptTokens,
        answerTokens = loop.tokens.size,
        ttft = (first - start) / 1e9,
        prefillTps = rate(promptTokens, ready - start),
        decodeTps = rate(count - 1, last - first),
        calls = loop.calls,
        drafted = loop.drafted,
        accepted = loop.accepted,
    )

    private fun rate(tokens: Int, nanoseconds: Long) =
        if (tokens < 1 || nanoseconds <= 0) 0.0 else tokens * 1e9 / nanoseconds
}
