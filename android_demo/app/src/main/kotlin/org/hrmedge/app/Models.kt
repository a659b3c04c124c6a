package org.hrmedge.app

import android.content.Context
import android.net.Uri
import android.provider.DocumentsContract
import java.io.File
import java.io.IOException
import java.io.InputStream
import org.hrmedge.core.Bundle
import org.hrmedge.core.Problem

/** The bundles on this device: those that the app brought along, and those imported. */
class Models(private val context: Context) {
    private val directory = File(context.filesDir, "models").apply { mkdirs() }

    /** Names of all bundles, the built-in ones first. */
    fun names(): List<String> {
        val imported = directory.list { file, name -> File(file, name).isDirectory && !name.endsWith(".partial") }
        return BUILT_IN + (imported.orEmpty().toList() - BUILT_IN.toSet()).sorted()
    }

    /** Opens the bundle [name]; a built-in one is unpacked at first. Throws [Problem]. */
    @Synchronized
    fun open(name: String): Bundle {
        val target = File(directory, name)
        if (name in BUILT_IN && !isCurrent(target)) {
            return Bundle.import(target, directory.usableSpace, { file -> asset(name, file) })
        }
        return Bundle.open(target)
    }

    /** Copies the bundle in the folder [tree], which the user picked. Throws [Problem]. */
    fun import(tree: Uri, progress: (Double) -> Unit): String {
        val folder = DocumentsContract.getTreeDocumentId(tree)
        val name = folder.substringAfterLast('/').substringAfterLast(':').ifEmpty { "imported" }
        if (name in BUILT_IN) throw Problem("$name is built in; rename the folder first.")
        val files = children(tree, folder)
        try {
            Bundle.import(
                File(directory, name),
                directory.usableSpace,
                { file -> files[file]?.let { context.contentResolver.openInputStream(it) } },
                progress,
            )
        } catch (error: SecurityException) { // the grant was taken back
            throw Problem("The folder cannot be read (${error.message}).")
        }
        return name
    }

    /** Deletes an imported bundle. */
    fun delete(name: String) {
        File(directory, name).deleteRecursively()
    }

    private fun children(tree: Uri, folder: String): Map<String, Uri> {
        val columns = arrayOf(
            DocumentsContract.Document.COLUMN_DOCUMENT_ID,
            DocumentsContract.Document.COLUMN_DISPLAY_NAME,
        )
        val query = DocumentsContract.buildChildDocumentsUriUsingTree(tree, folder)
        val found = HashMap<String, Uri>()
        context.contentResolver.query(query, columns, null, null, null)?.use { rows ->
            while (rows.moveToNext()) {
                val document = DocumentsContract.buildDocumentUriUsingTree(tree, rows.getString(0))
                found[rows.getString(1)] = document
            }
        }
        return found
    }

    /** Whether the unpacked bundle is the one that this version of the app brings along. */
    private fun isCurrent(target: File): Boolean {
        val manifest = File(target, org.hrmedge.core.Manifest.NAME)
        val brought = asset(target.name, manifest.name) ?: return manifest.isFile
        return manifest.isFile && brought.use { it.readBytes() }.contentEquals(manifest.readBytes())
    }

    private fun asset(model: String, file: String): InputStream? = try {
        context.assets.open("$model/$file")
    } catch (_: IOException) {
        null
    }

    companion object {
        /** The first one is chosen until the user chooses. */
        val BUILT_IN = listOf("hrm-tiny", "hrm-g2p")
    }
}
