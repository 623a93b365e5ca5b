plugins { kotlin("jvm") }

kotlin { jvmToolchain(17) }

// What a test framework would do for one main function: gradle :host:vectors
tasks.register<JavaExec>("vectors") {
    classpath = sourceSets["test"].runtimeClasspath
    mainClass = "kmaskrcnn.HostTestKt"
    args(rootProject.file("../../tests/golden/host_vectors.json"))
}
