package org.hrmedge.core

import org.json.JSONObject

/** What a chat template puts after a question and after an answer, see docs/bundle.md. */
data class Turns(val answer: String, val question: String)

/**
 * How text becomes a prefix: [start], the tokens of the conditions, the text, [end].
 *
 * A model with a chat template has no conditions, and [turns] unless only its template itself, a
 * program, can write a conversation.
 */
data class PromptFormat(
    val start: String,
    val end: String,
    val conditions: Map<String, String>,
    val turns: Turns? = null,
) {
    /** The prefix for [text], special tokens spelled out. Throws [Problem] if there is no text. */
    fun prefix(text: String, chosen: List<String>): String {
        val body = text.stripped()
        if (body.isEmpty()) throw Problem("The question is empty; write something first.")
        val tokens = chosen.map {
            conditions[it] ?: throw Problem("This model knows no condition \"$it\".")
        }
        return start + tokens.joinToString("") + body + end
    }

    /**
     * The text for [prefix] that holds the [earlier] turns and [question].
     *
     * HRM-Text was trained on single questions and never saw the transcript that it gets.
     */
    fun conversation(earlier: List<Exchange>, question: String): String = when {
        earlier.isEmpty() -> question
        conditions.isNotEmpty() -> transcript(earlier, question)
        turns == null -> throw Problem(
            "This model's chat template writes conversations in a way that the app cannot; " +
                "switch earlier turns off in the settings.",
        )
        else -> earlier.joinToString("") {
            it.question.stripped() + turns.answer + it.answer.stripped() + turns.question
        } + question
    }

    private fun transcript(earlier: List<Exchange>, question: String): String {
        val lines = earlier.flatMap { listOf("User: " + it.question.trim(), "Assistant: " + it.answer.trim()) }
        return (lines + ("User: " + question.trim()) + "Assistant:").joinToString("\n\n")
    }

    companion object {
        /** What the manifest [raw] says. Throws [Problem] where it leaves that to a program. */
        fun read(raw: JSONObject): PromptFormat {
            if (raw.isNull("prompt_format")) {
                throw Problem(
                    "This model's chat template is a program that the app cannot run; " +
                        "use the Python runtime.",
                )
            }
            val prompt = raw.getJSONObject("prompt_format")
            val conditions = prompt.getJSONObject("conditions")
            return PromptFormat(
                start = prompt.getString("start"),
                end = prompt.getString("end"),
                conditions = conditions.keyList().associateWith { conditions.getString(it) },
                turns = prompt.optJSONObject("turns")
                    ?.let { Turns(it.getString("answer"), it.getString("question")) },
            )
        }
    }
}

/** Without the spaces around it, as Python's strip. */
private fun String.stripped() = trim { it.isWhitespace() || it == '\u0085' }
