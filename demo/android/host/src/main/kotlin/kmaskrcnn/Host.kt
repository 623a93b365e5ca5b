// The host's part of a model for the GPU: proposals, RoIAlign, detections, the mask of each one's class, pasting.
// Pure Kotlin, no Android classes. The same steps as kmaskrcnn/export/host.py, which says what the graphs between are;
// tests/golden/host_vectors.json holds what each must give.
// Boxes are y0 x0 y1 x1, four numbers each, in pixels of the network's input.
package kmaskrcnn

import kotlin.math.ceil
import kotlin.math.exp
import kotlin.math.floor
import kotlin.math.ln
import kotlin.math.max
import kotlin.math.min
import kotlin.math.pow
import kotlin.math.sqrt

/** One level of the pyramid: its size in cells, the pixels between cells (y, x), the anchors of a cell at 0. */
class Level(val name: String, val height: Int, val width: Int, val strides: FloatArray, val anchors: List<FloatArray>)

/** `host` of the metadata. */
class Settings(
    val height: Int,
    val width: Int,
    val channels: Int,
    val numClasses: Int,
    val levels: List<Level>,
    val rpnPreNmsTopK: Int,
    val rpnPostNmsTopK: Int,
    val rpnNmsIou: Float,
    val rpnMinSize: Float,
    val boxPoolSize: Int,
    val maskPoolSize: Int,
    val roiSamplingRatio: Int,
    val roiAligned: Boolean,
    val boxCodingWeights: FloatArray,
    val scoreThreshold: Float,
    val nmsIou: Float,
    val maxDetections: Int,
) {
    companion object {
        /** From parsed JSON: maps, lists, numbers, booleans. */
        @Suppress("UNCHECKED_CAST")
        fun from(json: Map<String, Any?>): Settings {
            fun number(name: String) = json[name] as Number
            fun floats(values: Any?) = (values as List<Number>).map { it.toFloat() }.toFloatArray()
            val levels = (json["levels"] as List<Map<String, Any?>>).map { level ->
                val size = listOf("height", "width").map { (level[it] as Number).toInt() }
                val anchors = (level["anchors"] as List<Any?>).map { floats(it) }
                Level(level["name"] as String, size[0], size[1], floats(level["strides"]), anchors)
            }
            return Settings(
                number("height").toInt(), number("width").toInt(), number("channels").toInt(),
                number("num_classes").toInt(), levels,
                number("rpn_pre_nms_top_k").toInt(), number("rpn_post_nms_top_k").toInt(),
                number("rpn_nms_iou").toFloat(), number("rpn_min_size").toFloat(),
                number("box_pool_size").toInt(), number("mask_pool_size").toInt(),
                number("roi_sampling_ratio").toInt(), json["roi_aligned"] as Boolean,
                floats(json["box_coding_weights"]), number("score_threshold").toFloat(),
                number("nms_iou").toFloat(), number("max_detections").toInt(),
            )
        }
    }
}

/** Objects by falling score: boxes, four numbers each, scores, classes from 1, side x side mask probabilities each. */
class Detections(val boxes: FloatArray, val scores: FloatArray, val classes: IntArray, val masks: FloatArray, val side: Int)

class Host(private val settings: Settings) {
    /** The whole model; `run` runs one of the graphs pyramid, boxes and masks and gives its outputs by name. */
    fun detect(
        images: FloatArray, imageShape: IntArray, run: (String, FloatArray) -> Map<String, FloatArray>,
    ): Detections {
        val maps = run("pyramid", images)
        val rois = proposals(maps, imageShape)
        val pooled = roiAlign(maps, rois, settings.rpnPostNmsTopK, settings.boxPoolSize)
        val heads = run("boxes", pooled)
        val found = detections(heads.getValue("scores"), heads.getValue("deltas"), rois, imageShape)
        if (found.classes.isEmpty()) return found
        val masks = run("masks", roiAlign(maps, found.boxes, settings.maxDetections, settings.maskPoolSize))
        val chosen = chooseMasks(masks.getValue("masks"), found.classes)
        return Detections(found.boxes, found.scores, found.classes, chosen, 2 * settings.maskPoolSize)
    }

    /** Boxes by falling objectness, at most rpn_post_nms_top_k. */
    fun proposals(outputs: Map<String, FloatArray>, imageShape: IntArray): FloatArray {
        val most = settings.rpnPostNmsTopK
        val boxes = ArrayList<FloatArray>()
        val scores = ArrayList<Float>()
        for (level in settings.levels) {
            val logits = outputs.getValue("objectness_${level.name}")
            val deltas = outputs.getValue("deltas_${level.name}")
            val rows = topK(logits, settings.rpnPreNmsTopK)
            val decoded = FloatArray(4 * rows.size)
            val anchor = FloatArray(4)
            val large = ArrayList<Int>()
            for ((i, row) in rows.withIndex()) {
                val cell = row / level.anchors.size
                val corner = floatArrayOf((cell / level.width) * level.strides[0], (cell % level.width) * level.strides[1])
                for (j in 0 until 4) anchor[j] = corner[j % 2] + level.anchors[row % level.anchors.size][j]
                decode(deltas, 4 * row, ONES, anchor, 0, imageShape, decoded, 4 * i)
                val smallest = min(decoded[4 * i + 2] - decoded[4 * i], decoded[4 * i + 3] - decoded[4 * i + 1])
                if (smallest > settings.rpnMinSize) large.add(i)
            }
            for (i in nms(decoded, large, settings.rpnNmsIou, most)) {
                boxes.add(decoded.copyOfRange(4 * i, 4 * i + 4))
                scores.add(logits[rows[i]])
            }
        }
        val order = topK(scores.toFloatArray(), most)
        return FloatArray(4 * order.size) { boxes[order[it / 4]][it % 4] }
    }

    /** Pool boxes, each from its level, into `count` rows of size x size x channels; further rows are 0. */
    fun roiAlign(outputs: Map<String, FloatArray>, boxes: FloatArray, count: Int, size: Int): FloatArray {
        val channels = settings.channels
        val pooled = FloatArray(count * size * size * channels)
        val taps = 2 * settings.roiSamplingRatio
        for (roi in 0 until boxes.size / 4) {
            val b = 4 * roi
            val number = roiLevel(boxes, b)
            val level = settings.levels[number - 2]
            val map = outputs.getValue("P$number")
            val scale = 0.5f.pow(number)
            val rows = AxisTaps(boxes[b] * scale, boxes[b + 2] * scale, level.height, size)
            val columns = AxisTaps(boxes[b + 1] * scale, boxes[b + 3] * scale, level.width, size)
            for (y in 0 until size) for (x in 0 until size) {
                val to = ((roi * size + y) * size + x) * channels
                for (i in y * taps until (y + 1) * taps) for (j in x * taps until (x + 1) * taps) {
                    val weight = rows.weights[i] * columns.weights[j]
                    if (weight == 0f) continue
                    val from = (rows.cells[i] * level.width + columns.cells[j]) * channels
                    for (c in 0 until channels) pooled[to + c] += weight * map[from + c]
                }
            }
        }
        return pooled
    }

    /** RoIAlign along one axis: the cells that each bin reads and their weights, 2 * ratio of both for each bin. */
    private inner class AxisTaps(start: Float, stop: Float, length: Int, size: Int) {
        private val ratio = settings.roiSamplingRatio
        val cells = IntArray(2 * ratio * size)
        val weights = FloatArray(2 * ratio * size)

        init {
            val extent = if (settings.roiAligned) stop - start else max(stop - start, 1f)
            val first = if (settings.roiAligned) start - 0.5f else start
            for (sample in 0 until size * ratio) {
                val position = first + (sample + 0.5f) / ratio * (extent / size)
                if (position < -1f || position > length) continue
                val inside = min(max(position, 0f), length - 1f)
                val low = floor(inside).toInt()
                cells[2 * sample] = low
                cells[2 * sample + 1] = min(low + 1, length - 1)
                weights[2 * sample] = (1f - (inside - low)) / ratio
                weights[2 * sample + 1] = (inside - low) / ratio
            }
        }
    }

    /** The objects by falling score, at most max_detections, without masks. */
    fun detections(scores: FloatArray, deltas: FloatArray, boxes: FloatArray, imageShape: IntArray): Detections {
        class Found(val roi: Int, val number: Int, val score: Float, val box: FloatArray)

        val count = boxes.size / 4
        val depth = settings.numClasses + 1
        val found = ArrayList<Found>()
        for (number in 1 until depth) {
            val decoded = FloatArray(4 * count)
            val rows = (0 until count).filter { scores[it * depth + number] > settings.scoreThreshold }
            for (roi in rows) {
                val from = 4 * (roi * depth + number)
                decode(deltas, from, settings.boxCodingWeights, boxes, 4 * roi, imageShape, decoded, 4 * roi)
            }
            val order = rows.sortedByDescending { scores[it * depth + number] } // stable
            for (roi in nms(decoded, order, settings.nmsIou, settings.maxDetections)) {
                found.add(Found(roi, number, scores[roi * depth + number], decoded.copyOfRange(4 * roi, 4 * roi + 4)))
            }
        }
        val order = compareByDescending<Found> { it.score }.thenBy { it.roi }.thenBy { it.number }
        val kept = found.sortedWith(order).take(settings.maxDetections)
        return Detections(
            FloatArray(4 * kept.size) { kept[it / 4].box[it % 4] },
            FloatArray(kept.size) { kept[it].score },
            IntArray(kept.size) { kept[it].number },
            FloatArray(0),
            2 * settings.maskPoolSize,
        )
    }

    /** The mask of each object's class among those of all classes. */
    fun chooseMasks(masks: FloatArray, classes: IntArray): FloatArray {
        val cells = 4 * settings.maskPoolSize * settings.maskPoolSize
        val depth = settings.numClasses + 1
        return FloatArray(classes.size * cells) { masks[it * depth + classes[it / cells]] }
    }

    companion object {
        private val MAX_LOG_SCALE = ln(1000.0 / 16.0).toFloat()
        private val ONES = floatArrayOf(1f, 1f, 1f, 1f)

        /** Indices of the k highest of scores, or of all where there are fewer; of equal ones the first comes first. */
        fun topK(scores: FloatArray, k: Int): List<Int> = scores.indices.sortedByDescending { scores[it] }.take(k)

        /** The level 2..5 that a box is pooled from (FPN, equation 1). */
        fun roiLevel(boxes: FloatArray, b: Int): Int {
            val height = max(boxes[b + 2] - boxes[b], 0f).toDouble()
            val width = max(boxes[b + 3] - boxes[b + 1], 0f).toDouble()
            val level = floor(4 + ln(sqrt(height * width) / 224.0 + 1e-6) / ln(2.0)).toInt()
            return min(max(level, 2), 5)
        }

        /** Write the box that deltas at d, divided by weights, make of the anchor at a, clipped to the image. */
        private fun decode(
            deltas: FloatArray, d: Int, weights: FloatArray, anchors: FloatArray, a: Int, imageShape: IntArray,
            out: FloatArray, o: Int,
        ) {
            for (axis in 0 until 2) {
                val size = anchors[a + axis + 2] - anchors[a + axis]
                val center = deltas[d + axis] / weights[axis] * size + (anchors[a + axis] + 0.5f * size)
                val half = 0.5f * exp(min(deltas[d + axis + 2] / weights[axis + 2], MAX_LOG_SCALE)) * size
                out[o + axis] = min(max(center - half, 0f), imageShape[axis].toFloat())
                out[o + axis + 2] = min(max(center + half, 0f), imageShape[axis].toFloat())
            }
        }

        /** Greedy non-maximum suppression over the rows `order`, best first: the rows that are kept, at most `most`. */
        fun nms(boxes: FloatArray, order: List<Int>, iouThreshold: Float, most: Int): List<Int> {
            fun area(b: Int) = (boxes[b + 2] - boxes[b]) * (boxes[b + 3] - boxes[b + 1])
            val keep = ArrayList<Int>()
            for (row in order) {
                if (keep.size >= most) break
                val b = 4 * row
                if (!(boxes[b + 2] > boxes[b] && boxes[b + 3] > boxes[b + 1])) continue
                val covered = keep.any { other ->
                    val o = 4 * other
                    val height = min(boxes[b + 2], boxes[o + 2]) - max(boxes[b], boxes[o])
                    val width = min(boxes[b + 3], boxes[o + 3]) - max(boxes[b + 1], boxes[o + 1])
                    val overlap = max(height, 0f) * max(width, 0f)
                    overlap > iouThreshold * (area(b) + area(o) - overlap)
                }
                if (!covered) keep.add(row)
            }
            return keep
        }

        /**
         * The mask of an object in an image of height and width: true where it is set. `box` is in pixels of the image;
         * the side x side probabilities at `at` of `masks` tile it, sampled at each pixel's center, 0 outside.
         */
        fun paste(masks: FloatArray, at: Int, side: Int, box: FloatArray, height: Int, width: Int): BooleanArray {
            val image = BooleanArray(height * width)
            val (y0, x0, y1, x1) = box
            fun cell(i: Int, j: Int) = if (i in 0 until side && j in 0 until side) masks[at + i * side + j] else 0f
            for (y in max(floor(y0).toInt(), 0) until min(ceil(y1).toInt(), height)) {
                val v = (y + 0.5f - y0) / (y1 - y0) * side - 0.5f
                val row = floor(v).toInt()
                for (x in max(floor(x0).toInt(), 0) until min(ceil(x1).toInt(), width)) {
                    val u = (x + 0.5f - x0) / (x1 - x0) * side - 0.5f
                    val column = floor(u).toInt()
                    val top = cell(row, column) * (1 - u + column) + cell(row, column + 1) * (u - column)
                    val bottom = cell(row + 1, column) * (1 - u + column) + cell(row + 1, column + 1) * (u - column)
                    image[y * width + x] = top * (1 - v + row) + bottom * (v - row) >= 0.5f
                }
            }
            return image
        }
    }
}
