package org.hrmedge.core

import java.io.File
import org.json.JSONArray
import org.json.JSONException
import org.json.JSONObject

/** A question and its answer; [note] says how it was answered, for the user to read. */
data class Exchange(val question: String, val answer: String, val note: String, val time: Long)

/** The conversation, kept in a file over restarts. */
class History(private val file: File) {
    private val kept = ArrayList<Exchange>()

    /** Oldest first. */
    val exchanges: List<Exchange> get() = kept

    init {
        if (file.isFile) kept.addAll(read())
    }

    /** Appends [exchange] and saves. */
    fun add(exchange: Exchange) {
        kept.add(exchange)
        save()
    }

    /** Takes the newest exchange out and saves; null where there is none. */
    fun removeLast(): Exchange? {
        if (kept.isEmpty()) return null
        return kept.removeAt(kept.size - 1).also { save() }
    }

    /** The conversation as it is saved, for people and programs to read. */
    fun json(): String = rows().toString(2)

    /** Forgets everything. */
    fun clear() {
        kept.clear()
        save()
    }

    /** A damaged file is set aside, so that the app starts. */
    private fun read(): List<Exchange> = try {
        val raw = JSONArray(file.readText())
        (0 until raw.length()).map { i ->
            val row = raw.getJSONObject(i)
            Exchange(
                row.getString("question"),
                row.getString("answer"),
                row.getString("note"),
                row.getLong("time"),
            )
        }
    } catch (_: JSONException) {
        file.renameTo(File(file.path + ".damaged"))
        emptyList()
    }

    private fun rows(): JSONArray {
        val rows = JSONArray()
        for (exchange in kept) {
            rows.put(
                JSONObject()
                    .put("question", exchange.question)
                    .put("answer", exchange.answer)
                    .put("note", exchange.note)
                    .put("time", exchange.time),
            )
        }
        return rows
    }

    private fun save() {
        val partial = File(file.path + ".partial")
        partial.writeText(rows().toString())
        partial.renameTo(file)
    }
}
