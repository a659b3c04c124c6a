plugins {
    alias(libs.plugins.android.application) apply false
    alias(libs.plugins.kotlin.jvm) apply false
}

/** hrm-tiny as the bundle that goes into the app. */
tasks.register<Exec>("exportModel") {
    val checkpoint = file("../hrm_edge/data/hrm_tiny")
    val out = layout.buildDirectory.dir("model")
    inputs.dir(checkpoint)
    outputs.dir(out)
    commandLine("hrm-edge", "export", checkpoint.path, "-o", out.get().asFile.path, "--force")
}

/** What the tests run on: bundles with the Python runtime's answers, tokenizers with their ids. */
for ((name, directory) in listOf("python" to "bundles", "tokenizer" to "tokenizers")) {
    tasks.register<Exec>("${name}Cases") {
        val script = file("checks/${name}_cases.py")
        val out = layout.buildDirectory.dir(directory)
        inputs.file(script)
        outputs.dir(out)
        commandLine("python3", script.path, out.get().asFile.path)
    }
}
