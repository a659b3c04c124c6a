package org.hrmedge.app

import android.app.Application
import java.io.File
import org.hrmedge.core.History

/** What outlives the screens: the models, the conversation, and the engine at work. */
class HrmEdgeApp : Application() {
    val device by lazy { Device(this) }
    val preferences by lazy { Preferences(this) }
    val models by lazy { Models(this) }
    val history by lazy { History(File(filesDir, "history.json")) }
    val runner by lazy { Runner(this) }

    override fun onTrimMemory(level: Int) {
        super.onTrimMemory(level)
        if (level >= TRIM_MEMORY_BACKGROUND) runner.release()
    }
}
