package org.hrmedge.app

import android.content.Context
import android.content.SharedPreferences
import org.hrmedge.core.Manifest
import org.hrmedge.core.Settings

/** What the user chose, kept over restarts. */
class Preferences(context: Context) {
    private val stored: SharedPreferences =
        context.getSharedPreferences("settings", Context.MODE_PRIVATE)

    /** The name of the chosen model's directory. */
    var model: String
        get() = stored.getString("model", Models.BUILT_IN.first())!!
        set(name) = stored.edit().putString("model", name).apply()

    /** Prompt and answer together, in tokens. */
    var context: Int
        get() = stored.getInt("context", 2048)
        set(tokens) = stored.edit().putInt("context", tokens).apply()

    /** Threads of the engine; 0 leaves the choice to the app. */
    var threads: Int
        get() = stored.getInt("threads", 0)
        set(count) = stored.edit().putInt("threads", count).apply()

    /** Which of the model's measured plans an answer takes; "" is all passes and the whole cache. */
    var plan: String
        get() = stored.getString("plan", if (stored.getBoolean("fast", false)) Manifest.RECOMMENDED else "")!!
        set(name) = stored.edit().putString("plan", name).apply()

    /** Whether earlier turns are sent along with a question. */
    var conversation: Boolean
        get() = stored.getBoolean("conversation", false)
        set(on) = stored.edit().putBoolean("conversation", on).apply()

    var settings: Settings
        get() = Settings(
            conditions = stored.getString("conditions", "direct")!!.split(",").filter { it.isNotEmpty() },
            maxTokens = stored.getInt("max_tokens", 256),
            temperature = stored.getString("temperature", "0.0")!!.toDouble(),
            topK = stored.getInt("top_k", 0),
            topP = stored.getString("top_p", "1.0")!!.toDouble(),
            minP = stored.getString("min_p", "0.0")!!.toDouble(),
            seed = stored.getString("seed", "")!!.toLongOrNull(),
        )
        set(value) = stored.edit()
            .putString("conditions", value.conditions.joinToString(","))
            .putInt("max_tokens", value.maxTokens)
            .putString("temperature", value.temperature.toString())
            .putInt("top_k", value.topK)
            .putString("top_p", value.topP.toString())
            .putString("min_p", value.minP.toString())
            .putString("seed", value.seed?.toString() ?: "")
            .apply()
}
