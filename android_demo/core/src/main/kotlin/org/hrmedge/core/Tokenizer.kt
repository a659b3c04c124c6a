package org.hrmedge.core

import java.nio.ByteBuffer
import java.nio.CharBuffer
import java.nio.charset.CodingErrorAction
import java.util.regex.Pattern

/**
 * The byte-level BPE tokenizer of a tokenizer.json; adds no tokens, as the prompt spells its own.
 *
 * Text is cut at added tokens, then by the split's expressions, and the bytes of each piece are
 * merged by rank. Gives the ids of Hugging Face's `tokenizers`; see [TokenizerFile] for what it
 * reads and refuses.
 */
class Tokenizer internal constructor(private val file: TokenizerFile) {
    private val added = file.added.keys.sortedByDescending { it.length }
        .takeIf { it.isNotEmpty() }
        ?.let { tokens -> Pattern.compile(tokens.joinToString("|") { Pattern.quote(it) }) }

    /** Number of tokens, added ones included. */
    val vocabSize: Int get() = file.bytes.size

    /** Token ids of [text]; special tokens that it spells become their ids. */
    fun encode(text: String): IntArray {
        val ids = Ints()
        var start = 0
        val matcher = added?.matcher(text)
        while (matcher != null && matcher.find()) {
            encodePlain(text.substring(start, matcher.start()), ids)
            ids.add(file.added.getValue(matcher.group()))
            start = matcher.end()
        }
        encodePlain(text.substring(start), ids)
        return ids.toArray()
    }

    /** Text of [ids] without special tokens; bytes that are no UTF-8 become U+FFFD. */
    fun decode(ids: IntArray): String {
        val stream = stream()
        return ids.joinToString("") { stream.push(it) } + stream.flush()
    }

    /** A decoder that is fed one id at a time and yields whole characters. */
    fun stream(): TextStream = TextStream { id ->
        file.bytes.getOrNull(id)?.takeIf { id !in file.special }
    }

    private fun encodePlain(text: String, ids: Ints) {
        if (text.isEmpty()) return
        val pieces = file.split.apply(file.normalize(text))
        for (piece in pieces) encodePiece(piece.encodeToByteArray(), ids)
    }

    private fun encodePiece(piece: ByteArray, ids: Ints) {
        val whole = if (file.ignoreMerges) file.whole[String(piece, Charsets.ISO_8859_1)] else null
        if (whole != null) return ids.add(whole)
        val symbols = Ints()
        for (byte in piece) file.byteIds[byte.toInt() and 255].let { if (it >= 0) symbols.add(it) }
        file.merges.merge(symbols.toArray(), ids)
    }
}

/** Decodes a growing list of ids; text appears once its bytes form whole characters. */
class TextStream internal constructor(private val bytesOf: (Int) -> ByteArray?) {
    private val decoder = Charsets.UTF_8.newDecoder()
        .onMalformedInput(CodingErrorAction.REPLACE)
        .onUnmappableCharacter(CodingErrorAction.REPLACE)
    private var rest = ByteArray(0) // the beginning of an unfinished character

    /** The text that [token] completes, "" while a character is still unfinished. */
    fun push(token: Int): String = decode(bytesOf(token) ?: return "", end = false)

    /** What was left unfinished at the end. */
    fun flush(): String = decode(ByteArray(0), end = true)

    private fun decode(bytes: ByteArray, end: Boolean): String {
        val input = ByteBuffer.wrap(rest + bytes)
        val output = CharBuffer.allocate(input.remaining() + 1)
        decoder.decode(input, output, end)
        if (end) {
            decoder.flush(output)
            decoder.reset()
        }
        rest = ByteArray(input.remaining()).also { input.get(it) }
        output.flip()
        return output.toString()
    }
}

/** A growing list of ints without boxes. */
internal class Ints {
    private var values = IntArray(64)
    private var size = 0

    fun add(value: Int) {
        if (size == values.size) values = values.copyOf(2 * size)
        values[size++] = value
    }

    fun toArray(): IntArray = values.copyOf(size)
}
