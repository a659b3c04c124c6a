package org.hrmedge.core

import java.io.File
import java.text.Normalizer
import org.json.JSONArray
import org.json.JSONException
import org.json.JSONObject

/**
 * What a tokenizer.json of the byte-level BPE kind says.
 *
 * Anything that would change ids and is not done here is refused: other models, normalizers
 * than NFC, pre-tokenizers than Split, Digits and ByteLevel, added tokens that swallow spaces.
 */
internal class TokenizerFile(
    /** The bytes of each id; null where an id is not in use. */
    val bytes: Array<ByteArray?>,
    /** The id of each byte; -1 if there is none. */
    val byteIds: IntArray,
    val merges: Merges,
    val added: Map<String, Int>,
    val special: Set<Int>,
    val split: Split,
    val nfc: Boolean,
    /** Ids of whole words as Latin-1 of their bytes, for [ignoreMerges]. */
    val whole: Map<String, Int>,
    val ignoreMerges: Boolean,
) {
    fun normalize(text: String): String =
        if (nfc) Normalizer.normalize(text, Normalizer.Form.NFC) else text
}

/** Reads [file], a tokenizer.json. Throws [Problem] if it is damaged or of another kind. */
fun readTokenizer(file: File): Tokenizer = parsing(file) { Tokenizer(read(it)) }

/** How [file], a tokenizer.json of any kind, spells those of [ids] that are added tokens. */
fun readSpellings(file: File, ids: Set<Int>): Set<String> = parsing(file) { raw ->
    val added = raw.optJSONArray("added_tokens") ?: JSONArray()
    (0 until added.length()).map { added.getJSONObject(it) }
        .filter { it.getInt("id") in ids }
        .map { it.getString("content") }
        .toSet()
}

private fun <T> parsing(file: File, read: (JSONObject) -> T): T {
    if (!file.isFile) throw Problem("${file.name} is missing from the bundle; copy or export it again.")
    return try {
        read(JSONObject(reading { file.readText() }))
    } catch (error: JSONException) {
        throw Problem("${file.name} is damaged (${error.message}); copy or export the bundle again.")
    }
}

private fun read(raw: JSONObject): TokenizerFile {
    val model = raw.getJSONObject("model")
    refuse(model.optString("type", "BPE") != "BPE", "its model is no BPE")
    refuse(model.optBoolean("byte_fallback"), "byte_fallback")
    refuse(!model.isNull("unk_token"), "unk_token")
    for (affix in listOf("continuing_subword_prefix", "end_of_word_suffix")) {
        refuse(!model.isNull(affix) && model.getString(affix).isNotEmpty(), affix)
    }
    val vocabulary = HashMap<String, Int>()
    val vocab = model.getJSONObject("vocab")
    for (token in vocab.keys()) vocabulary[token] = vocab.getInt(token)
    val added = raw.optJSONArray("added_tokens") ?: JSONArray()
    val tokens = (0 until added.length()).map { added.getJSONObject(it) }
    for (token in tokens) {
        for (option in listOf("single_word", "lstrip", "rstrip")) {
            refuse(token.optBoolean(option), "$option of ${token.getString("content")}")
        }
    }
    val ignoreMerges = model.optBoolean("ignore_merges")
    val bytes = bytesById(vocabulary, tokens)
    return TokenizerFile(
        bytes = bytes,
        byteIds = IntArray(256) { vocabulary[CHARACTER_OF_BYTE[it].toString()] ?: -1 },
        merges = merges(model.getJSONArray("merges"), vocabulary),
        added = tokens.associate { it.getString("content") to it.getInt("id") },
        special = tokens.filter { it.optBoolean("special") }.map { it.getInt("id") }.toSet(),
        split = split(raw.optJSONObject("pre_tokenizer")),
        nfc = nfc(raw.optJSONObject("normalizer")),
        whole = if (ignoreMerges) vocabulary.mapKeys { String(decode(it.key), Charsets.ISO_8859_1) } else emptyMap(),
        ignoreMerges = ignoreMerges,
    )
}

private fun refuse(wrong: Boolean, what: String) {
    if (wrong) throw Problem("tokenizer.json is of a kind that this app does not read: $what.")
}

private fun bytesById(vocabulary: Map<String, Int>, added: List<JSONObject>): Array<ByteArray?> {
    val last = (vocabulary.values + added.map { it.getInt("id") }).maxOrNull() ?: -1
    val bytes = arrayOfNulls<ByteArray>(last + 1)
    for ((token, id) in vocabulary) bytes[id] = decode(token)
    for (token in added) bytes[token.getInt("id")] = token.getString("content").encodeToByteArray()
    return bytes
}

private fun merges(raw: JSONArray, vocabulary: Map<String, Int>): Merges {
    val lefts = IntArray(raw.length())
    val rights = IntArray(raw.length())
    val results = IntArray(raw.length())
    fun id(token: String) = vocabulary[token] ?: throw JSONException("no token $token for a merge")
    for (i in 0 until raw.length()) {
        val pair = raw.optJSONArray(i)
        val left = pair?.getString(0) ?: raw.getString(i).substringBefore(' ')
        val right = pair?.getString(1) ?: raw.getString(i).substringAfter(' ')
        lefts[i] = id(left)
        rights[i] = id(right)
        results[i] = id(left + right)
    }
    return Merges(lefts, rights, results)
}

private fun nfc(raw: JSONObject?): Boolean {
    refuse(raw != null && raw.getString("type") != "NFC", "its normalizer")
    return raw != null
}

private fun split(raw: JSONObject?): Split {
    refuse(raw == null, "it has no pre-tokenizer")
    val steps = if (raw!!.getString("type") == "Sequence") {
        val array = raw.getJSONArray("pretokenizers")
        (0 until array.length()).map { array.getJSONObject(it) }
    } else {
        listOf(raw)
    }
    refuse(steps.isEmpty() || steps.last().getString("type") != "ByteLevel", "its pre-tokenizer")
    return Split(steps.mapNotNull(::expression))
}

private fun expression(step: JSONObject): String? = when (step.getString("type")) {
    "ByteLevel" -> {
        refuse(step.optBoolean("add_prefix_space", true), "add_prefix_space")
        if (step.optBoolean("use_regex", true)) Split.GPT2 else null
    }
    "Digits" -> if (step.optBoolean("individual_digits")) """\p{N}""" else """\p{N}+"""
    "Split" -> {
        refuse(step.getString("behavior") != "Isolated" || step.optBoolean("invert"), "its split")
        val pattern = step.getJSONObject("pattern")
        if (pattern.has("Regex")) pattern.getString("Regex") else Regex.escape(pattern.getString("String"))
    }
    else -> throw Problem("tokenizer.json is of a kind that this app does not read: ${step.getString("type")}.")
}

/** GPT-2's printable stand-ins: those bytes that print as they are, the others from U+0100 on. */
private val CHARACTER_OF_BYTE: CharArray = run {
    var next = 256
    CharArray(256) { byte ->
        val prints = byte in 33..126 || byte in 161..172 || byte in 174..255
        if (prints) byte.toChar() else (next++).toChar()
    }
}

private val BYTE_OF_CHARACTER: Map<Char, Byte> =
    CHARACTER_OF_BYTE.withIndex().associate { (byte, character) -> character to byte.toByte() }

/** The bytes of a token; one that is not spelled in stand-ins is taken as UTF-8. */
private fun decode(token: String): ByteArray {
    val bytes = ByteArray(token.length)
    for ((i, character) in token.withIndex()) {
        bytes[i] = BYTE_OF_CHARACTER[character] ?: return token.encodeToByteArray()
    }
    return bytes
}
