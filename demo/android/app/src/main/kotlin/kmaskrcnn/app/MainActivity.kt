// The camera's frames with their masks, and milliseconds. Not compiled: see README.md.
package kmaskrcnn.app

import android.Manifest
import android.content.pm.PackageManager
import android.graphics.Bitmap
import android.graphics.Canvas
import android.graphics.Color
import android.graphics.Matrix
import android.graphics.Paint
import android.os.Bundle
import android.os.SystemClock
import android.widget.ImageView
import androidx.activity.ComponentActivity
import androidx.activity.result.contract.ActivityResultContracts
import androidx.camera.core.CameraSelector
import androidx.camera.core.ImageAnalysis
import androidx.camera.core.ImageProxy
import androidx.camera.lifecycle.ProcessCameraProvider
import androidx.core.content.ContextCompat
import kmaskrcnn.Host
import java.util.concurrent.Executors

private const val MIN_SCORE = 0.5f

class MainActivity : ComponentActivity() {
    private val worker = Executors.newSingleThreadExecutor()
    private lateinit var view: ImageView
    private var model: MaskRCNN? = null // used by the worker alone

    override fun onCreate(savedInstanceState: Bundle?) {
        super.onCreate(savedInstanceState)
        view = ImageView(this)
        setContentView(view)
        val ask = registerForActivityResult(ActivityResultContracts.RequestPermission()) { if (it) start() else finish() }
        val granted = ContextCompat.checkSelfPermission(this, Manifest.permission.CAMERA)
        if (granted == PackageManager.PERMISSION_GRANTED) start() else ask.launch(Manifest.permission.CAMERA)
    }

    private fun start() {
        val future = ProcessCameraProvider.getInstance(this)
        future.addListener({
            val analysis = ImageAnalysis.Builder()
                .setBackpressureStrategy(ImageAnalysis.STRATEGY_KEEP_ONLY_LATEST)
                .setOutputImageFormat(ImageAnalysis.OUTPUT_IMAGE_FORMAT_RGBA_8888)
                .build()
            analysis.setAnalyzer(worker, ::show)
            future.get().bindToLifecycle(this, CameraSelector.DEFAULT_BACK_CAMERA, analysis)
        }, ContextCompat.getMainExecutor(this))
    }

    private fun show(frame: ImageProxy) {
        val picture = frame.use { image ->
            val turn = Matrix().apply { postRotate(image.imageInfo.rotationDegrees.toFloat()) }
            val bitmap = image.toBitmap()
            Bitmap.createBitmap(bitmap, 0, 0, bitmap.width, bitmap.height, turn, true)
        }
        val model = model ?: MaskRCNN(this, "model").also { model = it }
        val start = SystemClock.elapsedRealtime()
        val found = model.predict(picture).filter { it.score >= MIN_SCORE }
        val milliseconds = SystemClock.elapsedRealtime() - start
        val shown = draw(picture, found, "$milliseconds ms on the ${if (model.onGpu) "GPU" else "CPU"}")
        runOnUiThread { view.setImageBitmap(shown) }
    }

    private fun draw(picture: Bitmap, found: List<Found>, caption: String): Bitmap {
        val shown = picture.copy(Bitmap.Config.ARGB_8888, true)
        val canvas = Canvas(shown)
        for ((i, thing) in found.withIndex()) {
            val color = Color.HSVToColor(floatArrayOf(i * 137.5f % 360f, 0.8f, 1f))
            val box = floatArrayOf(thing.box.top, thing.box.left, thing.box.bottom, thing.box.right)
            val mask = Host.paste(thing.mask, 0, thing.side, box, shown.height, shown.width)
            val overlay = IntArray(mask.size) { if (mask[it]) (color and 0xffffff) or 0x80000000.toInt() else 0 }
            canvas.drawBitmap(Bitmap.createBitmap(overlay, shown.width, shown.height, Bitmap.Config.ARGB_8888), 0f, 0f, null)
            val paint = Paint().apply { this.color = color; strokeWidth = 3f; textSize = 28f; style = Paint.Style.STROKE }
            canvas.drawRect(thing.box, paint)
            paint.style = Paint.Style.FILL
            val label = "${thing.label} ${"%.2f".format(thing.score)}"
            // On a small object it would hide the neighbors.
            if (2 * thing.box.width() >= paint.measureText(label)) {
                canvas.drawText(label, thing.box.left, thing.box.top - 6f, paint)
            }
        }
        canvas.drawText(caption, 16f, 40f, Paint().apply { color = Color.WHITE; textSize = 32f })
        return shown
    }

    override fun onDestroy() {
        super.onDestroy()
        worker.execute { model?.close() }
        worker.shutdown()
    }
}
