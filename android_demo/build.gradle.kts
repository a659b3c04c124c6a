plugins {
    alias(libs.plugins.android.application) apply false
    alias(libs.plugins.kotlin.jvm) apply false
}

/** hrm-tiny as bundles: the default one goes into the app, both are what the tests run on. */
val bundles = layout.buildDirectory.dir("bundles")
for (bits in listOf(8, 32)) {
    tasks.register<Exec>("exportKv$bits") {
        val checkpoint = file("../hrm_edge/data/hrm_tiny")
        val out = bundles.map { it.dir("kv$bits") }
        inputs.dir(checkpoint)
        outputs.dir(out)
        val path = out.get().asFile.path
        commandLine("hrm-edge", "export", checkpoint.path, "-o", path, "--kv-bits", "$bits", "--force")
    }
}

tasks.register<Exec>("tokenizerCases") {
    val out = layout.buildDirectory.dir("tokenizers")
    inputs.file("checks/tokenizer_cases.py")
    outputs.dir(out)
    commandLine("python3", "checks/tokenizer_cases.py", out.get().asFile.path)
}
