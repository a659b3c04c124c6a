plugins {
    alias(libs.plugins.android.application)
}

/** The built-in models as the app's assets; hrm-tiny's is made from the checkpoint, so that it is kept once. */
abstract class BuiltIn : Sync() {
    @get:OutputDirectory
    abstract val assets: DirectoryProperty
}

val builtIn = tasks.register<BuiltIn>("builtInModels") {
    dependsOn(":exportModel")
    from(rootProject.layout.buildDirectory.dir("model")) { into("hrm-tiny") }
    from(rootProject.file("../hrm_edge/data/hrm-g2p")) { into("hrm-g2p") }
    into(assets)
}

android {
    namespace = "org.hrmedge.app"
    compileSdk = 36

    defaultConfig {
        applicationId = "org.hrmedge.app"
        minSdk = 26
        targetSdk = 36
        versionCode = 1
        versionName = "0.1.0"
        ndk { abiFilters += listOf("arm64-v8a", "x86_64") }
    }

    compileOptions {
        sourceCompatibility = JavaVersion.VERSION_1_8
        targetCompatibility = JavaVersion.VERSION_1_8
    }

    testOptions {
        unitTests.all {
            it.dependsOn(":pythonCases", ":tokenizerCases")
            it.systemProperty("hrmedge.bundles", rootProject.file("build/bundles").path)
            it.systemProperty("hrmedge.tokenizers", rootProject.file("build/tokenizers").path)
            it.systemProperty("hrmedge.golden", rootProject.file("golden.json").path)
            it.systemProperty("hrmedge.spec", rootProject.file("../spec").path)
        }
    }
}

androidComponents {
    onVariants { it.sources.assets?.addGeneratedSourceDirectory(builtIn, BuiltIn::assets) }
}

dependencies {
    implementation(project(":core"))
    implementation(libs.onnxruntime.android)
    implementation(libs.executorch.android)
    testImplementation(testFixtures(project(":core")))
    testImplementation(libs.json) // in place of the stub in android.jar
    testImplementation(libs.onnxruntime.desktop)
    testImplementation(libs.kotlin.test)
    testImplementation(libs.junit)
}
