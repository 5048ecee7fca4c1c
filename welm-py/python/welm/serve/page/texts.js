// What the page says, in English and in Chinese, and the samples of WeLM's tutorial.

export const TEXTS = {
  en: {
    language: "中文", theme: "Dark or light", model: "Model", continue: "Continue", chat: "Chat", compare: "Compare",
    key: "API key", use: "Use", prompt: "Text to continue", message: "Your message", system: "System message (optional)",
    run: "Continue", send: "Send", stop: "Stop", clear: "Clear", likely: "likely", unlikely: "unlikely",
    settings: "Settings", settingsA: "Settings A", settingsB: "Settings B", you: "You", assistant: "Model",
    tokens: "tokens", perSecond: "tokens/s", first: "first after", stopped: "stopped", length: "length reached",
    ended: "ended", seed: "seed",
    temperature: ["Temperature", "0 always takes the likeliest token; more makes rare ones likelier."],
    top_p: ["Top-p", "Only the likeliest tokens whose probabilities add up to this are drawn from; 1 is all."],
    top_k: ["Top-k", "Only this many of the likeliest tokens are drawn from; 0 is all."],
    max_tokens: ["Most tokens", "The text ends after this many."],
    n: ["Texts", "How many texts are written."],
    repetition_penalty: ["Repetition penalty", "More than 1 makes tokens that were there before rarer."],
    stops: ["Stop at", "The text ends before any of these, which have | between; \\n is a line's end."],
    seedField: ["Seed", "The same seed gives the same text; empty is a new one each time."],
    samples: { cat: "Name a cat", question: "Question and answer", reading: "Reading", translation: "Translation",
      mixed: "Mixed languages", weather: "Today I am very…" },
  },
  zh: {
    language: "English", theme: "深色或浅色", model: "模型", continue: "续写", chat: "对话", compare: "对比",
    key: "API 密钥", use: "使用", prompt: "要续写的文本", message: "你的消息", system: "系统消息（可不填）",
    run: "续写", send: "发送", stop: "停止", clear: "清空", likely: "概率高", unlikely: "概率低",
    settings: "参数", settingsA: "参数 A", settingsB: "参数 B", you: "你", assistant: "模型",
    tokens: "个 token", perSecond: "token/秒", first: "首个用时", stopped: "已停止", length: "达到长度上限",
    ended: "已结束", seed: "随机种子",
    temperature: ["温度", "0 总是取概率最高的 token；越大，罕见的越容易出现。"],
    top_p: ["Top-p", "只在概率之和达到此值的最可能 token 中抽取；1 为全部。"],
    top_k: ["Top-k", "只在最可能的这么多个 token 中抽取；0 为全部。"],
    max_tokens: ["最多 token 数", "生成这么多后结束。"],
    n: ["篇数", "一次写几篇。"],
    repetition_penalty: ["重复惩罚", "大于 1 时，已出现过的 token 变得罕见。"],
    stops: ["停止于", "遇到其中任何一个就结束，用 | 分隔；\\n 表示换行。"],
    seedField: ["随机种子", "相同的种子得到相同的文本；留空则每次不同。"],
    samples: { cat: "给猫取名", question: "问答", reading: "阅读理解", translation: "翻译", mixed: "多语言混合",
      weather: "我今天很……" },
  },
};

export const SAMPLES = {
  weather: { prompt: "我今天很", settings: {} },
  cat: {
    prompt: "给自己的猫咪取个特色的名字。\n\n描述：美短 动漫角色\n名字：哆啦\n描述：英短 黑色 饮品\n名字：可乐\n描述：橘猫  黄色  食物\n名字：",
    settings: { n: 5, top_k: 10, stops: "\\n" },
  },
  question: {
    prompt: "下面我们做个问答任务\n\n问题：百年孤独的作者是？\n回答：加西亚·马尔克斯\n问题：红楼梦的作者是？\n回答：",
    settings: { temperature: 0, stops: "\\n|。" },
  },
  reading: {
    prompt: "阅读文章：\n小明家有三口人。爸爸是医生，每天很早去医院；妈妈在小学教数学。星期天，一家人常去公园放风筝。\n问题：小明的妈妈做什么工作？\n答案：",
    settings: { temperature: 0, stops: "\\n" },
  },
  translation: {
    prompt: "英文：The weather is nice today.\n中文：今天天气很好。\n英文：I have two brothers.\n中文：我有两个兄弟。\n英文：Where is the station?\n中文：",
    settings: { temperature: 0, stops: "\\n" },
  },
  mixed: {
    prompt: "把下面的话翻译成中文。\n原文：微信AI推出のWeLM是一个language model thatいろいろなtaskをperformができる\n中文：",
    settings: { temperature: 0, max_tokens: 48, stops: "\\n" },
  },
};
