package org.hrmedge.core

import java.io.File
import java.io.IOException
import java.io.InputStream
import kotlin.io.path.createTempDirectory
import kotlin.test.AfterTest
import kotlin.test.Test
import kotlin.test.assertContains
import kotlin.test.assertEquals
import kotlin.test.assertFalse
import kotlin.test.assertTrue

class BundleTest {
    private val original = TestFiles.bundle(8)
    private val scratch = createTempDirectory("bundle").toFile()
    private val target = File(scratch, "imported")

    @AfterTest
    fun clean() {
        scratch.deleteRecursively()
    }

    private fun copy(): File = File(scratch, "copy").also { original.directory.copyRecursively(it) }

    private fun source(directory: File): (String) -> InputStream? =
        { name -> File(directory, name).takeIf { it.isFile }?.inputStream() }

    private fun import(directory: File, free: Long = Long.MAX_VALUE, name: File = target) =
        Bundle.import(name, free, source(directory))

    @Test
    fun readsTheManifest() {
        val manifest = original.manifest
        assertEquals("onnx", manifest.target)
        assertEquals("8", manifest.cache.label)
        assertEquals("4 and 8", TestFiles.bundle("kv4h8").manifest.cache.label)
        assertEquals(setOf("direct", "cot", "noisy", "synth"), manifest.prompt.conditions.keys)
        assertEquals(setOf(11), manifest.ends)
    }

    @Test
    fun importsACopyThatIsEqualAndVerified() {
        val progress = ArrayList<Double>()
        val bundle = Bundle.import(target, Long.MAX_VALUE, source(original.directory)) { progress.add(it) }
        bundle.verify()
        assertEquals(original.manifest, bundle.manifest)
        assertEquals(1.0, progress.last())
        assertEquals(listOf("imported"), scratch.list()!!.toList())
    }

    @Test
    fun aChangedByteIsFound() {
        val copy = copy()
        val file = File(copy, "model.onnx.data")
        file.writeBytes(file.readBytes().also { it[1000] = (it[1000] + 1).toByte() })
        assertContains(problem { import(copy) }, "model.onnx.data differs")
        assertContains(problem { Bundle.open(copy).verify() }, "model.onnx.data differs")
        assertFalse(target.exists())
        assertEquals(listOf("copy"), scratch.list()!!.toList())
    }

    @Test
    fun aTruncatedOrMissingFileIsFound() {
        val copy = copy()
        File(copy, "model.onnx").writeText("short")
        assertContains(problem { Bundle.open(copy) }, "model.onnx has 5 bytes instead of")
        assertContains(problem { import(copy) }, "model.onnx has 5 bytes instead of")
        File(copy, "model.onnx").delete()
        assertContains(problem { Bundle.open(copy) }, "model.onnx is missing")
        assertContains(problem { import(copy) }, "model.onnx is missing")
    }

    @Test
    fun aFailedImportLeavesTheOldBundle() {
        import(original.directory)
        val copy = copy()
        File(copy, "tokenizer.json").delete()
        problem { import(copy) }
        Bundle.open(target).verify()
    }

    @Test
    fun aSourceThatBreaksOffIsAProblem() {
        val whole = source(original.directory)
        val breaking = { name: String ->
            if (name == "model.onnx.data") throw IOException("unplugged") else whole(name)
        }
        assertContains(problem { Bundle.import(target, Long.MAX_VALUE, breaking) }, "unplugged")
        assertTrue(scratch.list()!!.isEmpty())
    }

    @Test
    fun aFullDeviceIsNoticedBeforeCopying() {
        assertContains(problem { import(original.directory, free = 1000) }, "make room")
        assertTrue(scratch.list()!!.isEmpty())
    }

    @Test
    fun aDamagedForeignOrLaterManifestIsRefused() {
        val copy = copy()
        val manifest = File(copy, Manifest.NAME)
        val text = manifest.readText()
        manifest.writeText(text.replace("\"format_version\": 1", "\"format_version\": 2"))
        assertContains(problem { Bundle.open(copy) }, "update the app")
        manifest.writeText(text.dropLast(10))
        assertContains(problem { Bundle.open(copy) }, "damaged")
        manifest.writeText(text.replace("\"tokenizer.json\"", "\"../tokenizer.json\""))
        assertContains(problem { Bundle.open(copy) }, "not safe")
        manifest.delete()
        assertContains(problem { Bundle.open(copy) }, "no bundle")
    }
}
