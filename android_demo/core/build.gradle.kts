import org.jetbrains.kotlin.gradle.dsl.JvmTarget

plugins {
    alias(libs.plugins.kotlin.jvm)
    `java-test-fixtures`
}

kotlin {
    compilerOptions {
        jvmTarget = JvmTarget.JVM_1_8
        freeCompilerArgs.add("-Xjdk-release=1.8") // what every Android has
    }
}

java {
    sourceCompatibility = JavaVersion.VERSION_1_8
    targetCompatibility = JavaVersion.VERSION_1_8
}

dependencies {
    compileOnly(libs.json) // Android brings its own org.json
    testFixturesImplementation(libs.json)
    testImplementation(libs.json)
    testImplementation(libs.kotlin.test)
    testImplementation(libs.junit)
}

tasks.test {
    dependsOn(":pythonCases", ":tokenizerCases")
    systemProperty("hrmedge.bundles", rootProject.file("build/bundles").path)
    systemProperty("hrmedge.tokenizers", rootProject.file("build/tokenizers").path)
    systemProperty("hrmedge.golden", rootProject.file("golden.json").path)
    systemProperty("hrmedge.spec", rootProject.file("../spec").path)
}
