// The host's steps against what the model gives: run with the path of tests/golden/host_vectors.json.
// Compiles without a library: kotlinc Host.kt HostTest.kt -include-runtime -d host.jar && java -jar host.jar PATH
package kmaskrcnn

import java.io.File
import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.util.Base64
import kotlin.math.abs

/** Enough of JSON for the vectors: objects, arrays, strings without escapes, numbers, booleans. */
class Json(private val text: String) {
    private var at = 0

    fun parse(): Any? {
        skip()
        return when (val c = text[at]) {
            '{' -> group('}') { val name = parse() as String; skip(); at++; name to parse() }.associate { it }
            '[' -> group(']') { parse() }
            '"' -> text.substring(at + 1, text.indexOf('"', at + 1)).also { at += it.length + 2 }
            't', 'f' -> (c == 't').also { at += if (it) 4 else 5 }
            else -> {
                val start = at
                while (text[at] in "+-.eE0123456789") at++
                text.substring(start, at).toDouble()
            }
        }
    }

    private fun skip() { while (text[at] in " \n,") at++ }

    private fun <T> group(end: Char, item: () -> T): List<T> {
        at++
        val items = ArrayList<T>()
        while (true) {
            skip()
            if (text[at] == end) { at++; return items }
            items.add(item())
        }
    }
}

@Suppress("UNCHECKED_CAST")
fun floats(value: Any?): FloatArray {
    val bytes = Base64.getDecoder().decode((value as Map<String, Any?>)["data"] as String)
    val buffer = ByteBuffer.wrap(bytes).order(ByteOrder.LITTLE_ENDIAN).asFloatBuffer()
    return FloatArray(buffer.remaining()).also { buffer.get(it) }
}

@Suppress("UNCHECKED_CAST")
fun arrays(value: Any?) = (value as Map<String, Any?>).mapValues { floats(it.value) }

fun near(found: FloatArray, expected: FloatArray, what: String) {
    check(found.size == expected.size) { "$what: ${found.size} numbers, expected ${expected.size}" }
    val worst = found.indices.maxOfOrNull { abs(found[it] - expected[it]) } ?: 0f
    check(worst <= 1e-4f) { "$what: worst difference $worst" }
    println("$what: ${found.size} numbers, worst difference $worst")
}

@Suppress("UNCHECKED_CAST")
fun main(arguments: Array<String>) {
    val vectors = Json(File(arguments[0]).readText()).parse() as Map<String, Any?>
    val settings = Settings.from(vectors["settings"] as Map<String, Any?>)
    val host = Host(settings)
    fun ints(name: String) = (vectors[name] as List<Double>).map { it.toInt() }.toIntArray()
    val shape = ints("image_shape")
    val pyramid = arrays(vectors["pyramid"])
    val expected = arrays(vectors["detections"])
    val rois = host.proposals(pyramid, shape)
    near(rois, floats(vectors["proposals"]), "proposals")
    near(host.roiAlign(pyramid, rois, rois.size / 4, settings.boxPoolSize), floats(vectors["pooled"]), "pooled")
    val graphs = mapOf(
        "pyramid" to pyramid, "boxes" to arrays(vectors["heads"]), "masks" to mapOf("masks" to floats(vectors["masks"])),
    )
    val found = host.detect(FloatArray(0), shape) { graph, _ -> graphs.getValue(graph) }
    near(found.boxes, expected.getValue("boxes"), "boxes")
    near(found.scores, expected.getValue("scores"), "scores")
    near(found.classes.map { it.toFloat() }.toFloatArray(), expected.getValue("classes"), "classes")
    near(found.masks, expected.getValue("masks"), "masks")
    val pooledMasks = host.roiAlign(pyramid, found.boxes, settings.maxDetections, settings.maskPoolSize)
    near(pooledMasks, floats(vectors["pooled_masks"]), "pooled masks")
    val size = ints("size")
    var bits = 0
    for ((i, text) in (vectors["pasted"] as List<String>).withIndex()) {
        val box = FloatArray(4) { found.boxes[4 * i + it] * size[it % 2] / shape[it % 2] }
        val pasted = Host.paste(found.masks, i * found.side * found.side, found.side, box, size[0], size[1])
        bits += pasted.indices.count { pasted[it] != (text[it] == '1') }
    }
    check(bits <= 2) { "pasted: $bits pixels differ" } // at exactly one half the last digit decides
    println("pasted: ${found.scores.size} masks, $bits pixels differ")
}
