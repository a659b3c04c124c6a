package org.hrmedge.core

private val WEIGHTS = listOf(".data", ".pte", ".ptd")

/** Bytes that a session will hold with its context full; an estimate made before loading. */
data class Need(val weights: Long, val cache: Long, val activations: Long) {
    val total: Long get() = weights + cache + activations
}

/** What [context] tokens of prompt and answer take, the prompt as long as can be. */
fun need(manifest: Manifest, context: Int): Need {
    val weights = manifest.files.filterKeys { name -> WEIGHTS.any(name::endsWith) }
    return Need(
        weights = weights.values.sumOf { it.size },
        cache = context * manifest.cache.bytesPerToken,
        activations = activations(manifest.architecture, context.toLong()),
    )
}

/** As hrm_edge/fit.py: a block's projections and residuals three times, and scores, float32. */
private fun activations(model: Architecture, context: Long): Long {
    val attention = (model.heads * model.headDim).toLong()
    val perToken = 2L * model.intermediateSize + 6L * attention + 4L * model.hiddenSize
    return 4L * (3 * context * perToken + context * context * model.heads + model.vocabSize)
}

/** The longest context for which [room] bytes are enough; 0 if not even two tokens fit. */
fun largestContext(manifest: Manifest, room: Long): Int {
    var low = 0
    var high = manifest.maxSeqLen
    while (low < high) {
        val middle = (low + high + 1) / 2
        if (need(manifest, middle).total <= room) low = middle else high = middle - 1
    }
    return if (low >= 2) low else 0
}

/** The context to load with: [wanted], or less where memory is short. Throws [Problem]. */
fun fittingContext(manifest: Manifest, wanted: Int, room: Long): Int {
    val fits = largestContext(manifest, room)
    if (fits == 0) throw tooLarge(need(manifest, 2), room)
    return wanted.coerceIn(2, fits)
}

/**
 * The length of the ExecuTorch program to load: the shortest that holds [wanted] tokens, or less
 * where memory is short, since a program takes its whole cache at once. Throws [Problem].
 */
fun fittingProgram(manifest: Manifest, wanted: Int, room: Long): Int {
    val lengths = (manifest.contexts + manifest.maxSeqLen).sorted()
    val fits = lengths.filter { need(manifest, it).total <= room }
    return fits.firstOrNull { it >= wanted } ?: fits.lastOrNull()
        ?: throw tooLarge(need(manifest, lengths.first()), room)
}

private fun tooLarge(need: Need, room: Long) = Problem(
    "The model needs about ${mebibytes(need.total)} of memory, ${mebibytes(room)} are available; " +
        "close other apps or use a smaller model.",
)

/** "640 MiB". */
fun mebibytes(bytes: Long): String = "%,d MiB".format((bytes + (1 shl 19)) shr 20)
