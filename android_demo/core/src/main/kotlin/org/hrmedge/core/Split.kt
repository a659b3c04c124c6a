package org.hrmedge.core

import java.util.regex.Pattern
import java.util.regex.PatternSyntaxException

/** Cuts text into the pieces that are merged on their own: expressions, one after the other. */
internal class Split(expressions: List<String>) {
    private val patterns = expressions.map(::compile)

    /** The pieces of [text]: what an expression matches, and what lies between its matches. */
    fun apply(text: String): List<String> =
        patterns.fold(listOf(text)) { pieces, pattern -> pieces.flatMap { cut(it, pattern) } }

    private fun cut(text: String, pattern: Pattern): List<String> {
        val pieces = ArrayList<String>()
        val matcher = pattern.matcher(text)
        var start = 0
        while (matcher.find()) {
            if (matcher.end() == matcher.start()) continue
            if (matcher.start() > start) pieces.add(text.substring(start, matcher.start()))
            pieces.add(matcher.group())
            start = matcher.end()
        }
        if (start < text.length) pieces.add(text.substring(start))
        return pieces
    }

    companion object {
        /** GPT-2's, which a ByteLevel pre-tokenizer applies by itself. */
        const val GPT2 =
            """'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""

        private const val SPACE =
            """\t-\r \x{85}\x{A0}\x{1680}\x{2000}-\x{200A}\x{2028}\x{2029}\x{202F}\x{205F}\x{3000}"""

        /**
         * Oniguruma's expression for this platform's engine.
         *
         * `\s` is spelled out, as the JVM's knows ASCII spaces only while Android's (ICU) knows
         * all, and neither takes the other's flag.
         */
        private fun compile(expression: String): Pattern = try {
            Pattern.compile(spellSpaces(expression), Pattern.UNICODE_CASE)
        } catch (error: PatternSyntaxException) {
            throw Problem("The tokenizer splits text in a way that is not known here (${error.description}).")
        }

        private fun spellSpaces(expression: String): String {
            val out = StringBuilder()
            var inClass = false
            var i = 0
            while (i < expression.length) {
                val c = expression[i]
                if (c == '\\' && i + 1 < expression.length) {
                    val escaped = expression[i + 1]
                    out.append(
                        when {
                            escaped == 's' && inClass -> SPACE
                            escaped == 's' -> "[$SPACE]"
                            escaped == 'S' && !inClass -> "[^$SPACE]"
                            else -> "\\$escaped"
                        },
                    )
                    i += 2
                    continue
                }
                if (c == '[') inClass = true
                if (c == ']') inClass = false
                out.append(c)
                i++
            }
            return out.toString()
        }
    }
}
