// NOT COMPILED AND NOT RUN by this project's tests: a port of demo/android/host/src/main/kotlin/kmaskrcnn/Host.kt,
// line by line. tests/golden/host_vectors.json holds what each step must give: check it there before you rely on it.
//
// The host's part of a model for the GPU: proposals, RoIAlign, detections, the mask of each one's class, pasting.
// Boxes are y0 x0 y1 x1, four numbers each, in pixels of the network's input.
import Foundation

/// `host` of the metadata, as JSON has it.
struct Settings: Decodable {
    struct Level: Decodable {
        let name: String
        let height: Int, width: Int
        let strides: [Float]
        let anchors: [[Float]]
    }

    let height: Int, width: Int, channels: Int, numClasses: Int
    let levels: [Level]
    let rpnPreNmsTopK: Int, rpnPostNmsTopK: Int
    let rpnNmsIou: Float, rpnMinSize: Float
    let boxPoolSize: Int, maskPoolSize: Int, roiSamplingRatio: Int
    let roiAligned: Bool
    let boxCodingWeights: [Float]
    let scoreThreshold: Float, nmsIou: Float
    let maxDetections: Int

    enum CodingKeys: String, CodingKey {
        case height, width, channels, levels
        case numClasses = "num_classes", rpnPreNmsTopK = "rpn_pre_nms_top_k", rpnPostNmsTopK = "rpn_post_nms_top_k"
        case rpnNmsIou = "rpn_nms_iou", rpnMinSize = "rpn_min_size", boxPoolSize = "box_pool_size"
        case maskPoolSize = "mask_pool_size", roiSamplingRatio = "roi_sampling_ratio", roiAligned = "roi_aligned"
        case boxCodingWeights = "box_coding_weights", scoreThreshold = "score_threshold", nmsIou = "nms_iou"
        case maxDetections = "max_detections"
    }
}

/// Objects by falling score: boxes, four numbers each, scores, classes from 1, mask probabilities, side * side each.
struct Detections {
    var boxes: [Float], scores: [Float], classes: [Int], masks: [Float]
}

struct Host {
    let settings: Settings
    private static let maxLogScale = Float(log(1000.0 / 16.0))

    /// The whole model; `run` runs one of the graphs pyramid, boxes and masks and gives its outputs by name.
    func detect(
        _ images: [Float], imageShape: [Int], run: (String, [Float]) throws -> [String: [Float]]
    ) rethrows -> Detections {
        let maps = try run("pyramid", images)
        let rois = proposals(maps, imageShape)
        let pooled = roiAlign(maps, rois, count: settings.rpnPostNmsTopK, size: settings.boxPoolSize)
        let heads = try run("boxes", pooled)
        var found = detections(heads["scores"]!, heads["deltas"]!, rois, imageShape)
        if found.classes.isEmpty { return found }
        let input = roiAlign(maps, found.boxes, count: settings.maxDetections, size: settings.maskPoolSize)
        found.masks = chooseMasks(try run("masks", input)["masks"]!, found.classes)
        return found
    }

    /// Indices of the k highest of scores; of equal ones the first comes first.
    static func topK(_ scores: [Float], _ k: Int) -> [Int] {
        let order = scores.indices.sorted { scores[$0] != scores[$1] ? scores[$0] > scores[$1] : $0 < $1 }
        return Array(order.prefix(k))
    }

    /// Boxes by falling objectness, at most rpn_post_nms_top_k.
    func proposals(_ outputs: [String: [Float]], _ imageShape: [Int]) -> [Float] {
        let most = settings.rpnPostNmsTopK
        var boxes: [[Float]] = [], scores: [Float] = []
        for level in settings.levels {
            let logits = outputs["objectness_\(level.name)"]!, deltas = outputs["deltas_\(level.name)"]!
            let rows = Host.topK(logits, settings.rpnPreNmsTopK)
            var decoded = [Float](repeating: 0, count: 4 * rows.count)
            var large: [Int] = []
            for (i, row) in rows.enumerated() {
                let cell = row / level.anchors.count
                let corner = [Float(cell / level.width) * level.strides[0], Float(cell % level.width) * level.strides[1]]
                let anchor = (0..<4).map { corner[$0 % 2] + level.anchors[row % level.anchors.count][$0] }
                Host.decode(deltas, 4 * row, [1, 1, 1, 1], anchor, 0, imageShape, &decoded, 4 * i)
                let height = decoded[4 * i + 2] - decoded[4 * i], width = decoded[4 * i + 3] - decoded[4 * i + 1]
                if min(height, width) > settings.rpnMinSize { large.append(i) }
            }
            for i in Host.nms(decoded, large, settings.rpnNmsIou, most) {
                boxes.append(Array(decoded[4 * i..<4 * i + 4]))
                scores.append(logits[rows[i]])
            }
        }
        return Host.topK(scores, most).flatMap { boxes[$0] }
    }

    /// Write the box that deltas at d, divided by weights, make of the anchor at a, clipped to the image.
    static func decode(
        _ deltas: [Float], _ d: Int, _ weights: [Float], _ anchors: [Float], _ a: Int, _ imageShape: [Int],
        _ out: inout [Float], _ o: Int
    ) {
        for axis in 0..<2 {
            let size = anchors[a + axis + 2] - anchors[a + axis], limit = Float(imageShape[axis])
            let center = deltas[d + axis] / weights[axis] * size + (anchors[a + axis] + 0.5 * size)
            let half = 0.5 * exp(min(deltas[d + axis + 2] / weights[axis + 2], maxLogScale)) * size
            out[o + axis] = min(max(center - half, 0), limit)
            out[o + axis + 2] = min(max(center + half, 0), limit)
        }
    }

    /// Greedy non-maximum suppression over the rows `order`, best first: the rows that are kept, at most `most`.
    static func nms(_ boxes: [Float], _ order: [Int], _ iouThreshold: Float, _ most: Int) -> [Int] {
        func area(_ b: Int) -> Float { (boxes[b + 2] - boxes[b]) * (boxes[b + 3] - boxes[b + 1]) }
        var keep: [Int] = []
        for row in order {
            if keep.count >= most { break }
            let b = 4 * row
            if !(boxes[b + 2] > boxes[b] && boxes[b + 3] > boxes[b + 1]) { continue }
            let covered = keep.contains { other in
                let o = 4 * other
                let height = min(boxes[b + 2], boxes[o + 2]) - max(boxes[b], boxes[o])
                let width = min(boxes[b + 3], boxes[o + 3]) - max(boxes[b + 1], boxes[o + 1])
                let overlap = max(height, 0) * max(width, 0)
                return overlap > iouThreshold * (area(b) + area(o) - overlap)
            }
            if !covered { keep.append(row) }
        }
        return keep
    }

    /// The level 2..5 that a box is pooled from (FPN, equation 1).
    static func roiLevel(_ boxes: [Float], _ b: Int) -> Int {
        let height = Double(max(boxes[b + 2] - boxes[b], 0)), width = Double(max(boxes[b + 3] - boxes[b + 1], 0))
        let level = Int(floor(4 + log2((height * width).squareRoot() / 224 + 1e-6)))
        return min(max(level, 2), 5)
    }

    /// RoIAlign along one axis: the cells that each bin reads and their weights, 2 * ratio of both for each bin.
    private func axisTaps(_ start: Float, _ stop: Float, _ length: Int, _ size: Int) -> (cells: [Int], weights: [Float]) {
        let ratio = settings.roiSamplingRatio
        let extent = settings.roiAligned ? stop - start : max(stop - start, 1)
        let first = settings.roiAligned ? start - 0.5 : start
        var cells = [Int](repeating: 0, count: 2 * ratio * size)
        var weights = [Float](repeating: 0, count: 2 * ratio * size)
        for sample in 0..<size * ratio {
            let position = first + (Float(sample) + 0.5) / Float(ratio) * (extent / Float(size))
            if position < -1 || position > Float(length) { continue }
            let inside = min(max(position, 0), Float(length - 1))
            let low = Int(floor(inside))
            cells[2 * sample] = low
            cells[2 * sample + 1] = min(low + 1, length - 1)
            weights[2 * sample] = (1 - (inside - Float(low))) / Float(ratio)
            weights[2 * sample + 1] = (inside - Float(low)) / Float(ratio)
        }
        return (cells, weights)
    }

    /// Pool boxes, each from its level, into `count` rows of size x size x channels; further rows are 0.
    func roiAlign(_ outputs: [String: [Float]], _ boxes: [Float], count: Int, size: Int) -> [Float] {
        let channels = settings.channels, taps = 2 * settings.roiSamplingRatio
        var pooled = [Float](repeating: 0, count: count * size * size * channels)
        for roi in 0..<boxes.count / 4 {
            let b = 4 * roi, number = Host.roiLevel(boxes, b)
            let level = settings.levels[number - 2], map = outputs["P\(number)"]!
            let scale = pow(Float(0.5), Float(number))
            let rows = axisTaps(boxes[b] * scale, boxes[b + 2] * scale, level.height, size)
            let columns = axisTaps(boxes[b + 1] * scale, boxes[b + 3] * scale, level.width, size)
            for y in 0..<size {
                for x in 0..<size {
                    let to = ((roi * size + y) * size + x) * channels
                    for i in y * taps..<(y + 1) * taps {
                        for j in x * taps..<(x + 1) * taps {
                            let weight = rows.weights[i] * columns.weights[j]
                            if weight == 0 { continue }
                            let from = (rows.cells[i] * level.width + columns.cells[j]) * channels
                            for c in 0..<channels { pooled[to + c] += weight * map[from + c] }
                        }
                    }
                }
            }
        }
        return pooled
    }

    /// The objects by falling score, at most max_detections, without masks.
    func detections(_ scores: [Float], _ deltas: [Float], _ boxes: [Float], _ imageShape: [Int]) -> Detections {
        let count = boxes.count / 4, depth = settings.numClasses + 1
        var found: [(roi: Int, number: Int, score: Float, box: [Float])] = []
        for number in 1..<depth {
            var decoded = [Float](repeating: 0, count: 4 * count)
            let rows = (0..<count).filter { scores[$0 * depth + number] > settings.scoreThreshold }
            for roi in rows {
                let from = 4 * (roi * depth + number)
                Host.decode(deltas, from, settings.boxCodingWeights, boxes, 4 * roi, imageShape, &decoded, 4 * roi)
            }
            let order = rows.sorted {
                let (a, b) = (scores[$0 * depth + number], scores[$1 * depth + number])
                return a != b ? a > b : $0 < $1
            }
            for roi in Host.nms(decoded, order, settings.nmsIou, settings.maxDetections) {
                found.append((roi, number, scores[roi * depth + number], Array(decoded[4 * roi..<4 * roi + 4])))
            }
        }
        found.sort { a, b in
            if a.score != b.score { return a.score > b.score }
            return a.roi != b.roi ? a.roi < b.roi : a.number < b.number
        }
        let kept = found.prefix(settings.maxDetections)
        return Detections(boxes: kept.flatMap(\.box), scores: kept.map(\.score), classes: kept.map(\.number), masks: [])
    }

    /// The mask of each object's class among those of all classes.
    func chooseMasks(_ masks: [Float], _ classes: [Int]) -> [Float] {
        let cells = 4 * settings.maskPoolSize * settings.maskPoolSize, depth = settings.numClasses + 1
        return (0..<classes.count * cells).map { masks[$0 * depth + classes[$0 / cells]] }
    }

    /// The mask of an object in an image of height and width, true where it is set; `box` in pixels of the image, `mask`
    /// the side * side probabilities that tile it, sampled at each pixel's center, 0 outside.
    static func paste(_ mask: [Float], side: Int, box: [Float], height: Int, width: Int) -> [Bool] {
        var image = [Bool](repeating: false, count: height * width)
        func cell(_ i: Int, _ j: Int) -> Float {
            i >= 0 && j >= 0 && i < side && j < side ? mask[i * side + j] : 0
        }
        let (y0, x0, y1, x1) = (box[0], box[1], box[2], box[3])
        for y in stride(from: max(Int(floor(y0)), 0), to: min(Int(ceil(y1)), height), by: 1) {
            let v = (Float(y) + 0.5 - y0) / (y1 - y0) * Float(side) - 0.5
            let row = Int(floor(v)), dv = v - floor(v)
            for x in stride(from: max(Int(floor(x0)), 0), to: min(Int(ceil(x1)), width), by: 1) {
                let u = (Float(x) + 0.5 - x0) / (x1 - x0) * Float(side) - 0.5
                let column = Int(floor(u)), du = u - floor(u)
                let top = cell(row, column) * (1 - du) + cell(row, column + 1) * du
                let bottom = cell(row + 1, column) * (1 - du) + cell(row + 1, column + 1) * du
                image[y * width + x] = top * (1 - dv) + bottom * dv >= 0.5
            }
        }
        return image
    }
}
