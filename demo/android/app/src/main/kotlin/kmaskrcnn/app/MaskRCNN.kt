// The graphs in LiteRT on the GPU, or on the CPU; what lies between them is Host's. Not compiled: see README.md.
package kmaskrcnn.app

import android.content.Context
import android.graphics.Bitmap
import android.graphics.Canvas
import android.graphics.Color
import android.graphics.Paint
import android.graphics.RectF
import com.google.ai.edge.litert.Accelerator
import com.google.ai.edge.litert.CompiledModel
import com.google.ai.edge.litert.LiteRtException
import com.google.ai.edge.litert.TensorBuffer
import kmaskrcnn.Host
import kmaskrcnn.Settings
import org.json.JSONArray
import org.json.JSONObject
import kotlin.math.min
import kotlin.math.roundToInt

/** An object in an image: its box in the image's pixels, and side x side mask probabilities that tile it. */
class Found(val box: RectF, val score: Float, val label: String, val mask: FloatArray, val side: Int)

/** A model of --format=tflite_gpu among the assets, with NAME.metadata.json beside it. One thread at a time. */
class MaskRCNN(context: Context, name: String) : AutoCloseable {
    private val metadata = JSONObject(context.assets.open("$name.metadata.json").bufferedReader().readText())
    private val settings = Settings.from(plain(metadata.getJSONObject("host")))
    private val labels = metadata.getJSONArray("class_names").let { names -> List(names.length()) { names.getString(it) } }
    private val padding = metadata.getJSONArray("pad_value").let { v -> FloatArray(3) { v.getDouble(it).toFloat() } }
    private val host = Host(settings)

    /** Whether the GPU took the model. */
    val onGpu: Boolean
    private val model: CompiledModel

    init {
        val gpu = try {
            CompiledModel.create(context.assets, "$name.tflite", CompiledModel.Options(Accelerator.GPU))
        } catch (error: LiteRtException) {
            null
        }
        onGpu = gpu != null
        model = gpu ?: CompiledModel.create(context.assets, "$name.tflite", CompiledModel.Options(Accelerator.CPU))
    }

    private val outputNames = mapOf(
        "pyramid" to (2..5).map { "P$it" } + (2..6).flatMap { listOf("objectness_P$it", "deltas_P$it") },
        "boxes" to listOf("scores", "deltas"),
        "masks" to listOf("masks"),
    )
    private val inputs: Map<String, Map<String, TensorBuffer>> = outputNames.keys.associateWith { graph ->
        val input = if (graph == "pyramid") "images" else "pooled"
        mapOf(input to model.createInputBuffer(input, graph))
    }
    private val outputs = outputNames.mapValues { (graph, names) ->
        names.associateWith { model.createOutputBuffer(it, graph) }
    }

    private fun run(graph: String, values: FloatArray): Map<String, FloatArray> {
        inputs.getValue(graph).values.single().writeFloat(values)
        model.run(inputs.getValue(graph), outputs.getValue(graph), graph)
        return outputs.getValue(graph).mapValues { it.value.readFloat() }
    }

    /** Objects in an upright image, by decreasing score. */
    fun predict(picture: Bitmap): List<Found> {
        val scale = min(settings.height.toFloat() / picture.height, settings.width.toFloat() / picture.width)
        val height = (picture.height * scale).roundToInt().coerceIn(1, settings.height)
        val width = (picture.width * scale).roundToInt().coerceIn(1, settings.width)
        val canvas = Bitmap.createBitmap(settings.width, settings.height, Bitmap.Config.ARGB_8888)
        val target = RectF(0f, 0f, width.toFloat(), height.toFloat())
        Canvas(canvas).drawBitmap(picture, null, target, Paint(Paint.FILTER_BITMAP_FLAG))
        val pixels = IntArray(settings.width * settings.height)
        canvas.getPixels(pixels, 0, settings.width, 0, 0, settings.width, settings.height)
        val images = FloatArray(3 * pixels.size)
        for ((i, pixel) in pixels.withIndex()) {
            val inside = i / settings.width < height && i % settings.width < width
            images[3 * i] = if (inside) Color.red(pixel).toFloat() else padding[0]
            images[3 * i + 1] = if (inside) Color.green(pixel).toFloat() else padding[1]
            images[3 * i + 2] = if (inside) Color.blue(pixel).toFloat() else padding[2]
        }
        val found = host.detect(images, intArrayOf(height, width), ::run)
        val y = picture.height.toFloat() / height
        val x = picture.width.toFloat() / width
        val cells = found.side * found.side
        return found.scores.indices.map { i ->
            val (y0, x0, y1, x1) = found.boxes.copyOfRange(4 * i, 4 * i + 4)
            val mask = found.masks.copyOfRange(i * cells, (i + 1) * cells)
            Found(RectF(x0 * x, y0 * y, x1 * x, y1 * y), found.scores[i], labels[found.classes[i] - 1], mask, found.side)
        }
    }

    override fun close() {
        (inputs.values + outputs.values).forEach { buffers -> buffers.values.forEach { it.close() } }
        model.close()
    }

    private fun plain(json: JSONObject): Map<String, Any?> = json.keys().asSequence().associateWith { plain(json.get(it)) }

    private fun plain(value: Any?): Any? = when (value) {
        is JSONObject -> plain(value)
        is JSONArray -> List(value.length()) { plain(value.get(it)) }
        else -> value
    }
}
