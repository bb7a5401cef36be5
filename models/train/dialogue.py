"""The chat lines this project wrote itself: greetings, small talk, simple advice, in English and Chinese.

Every line is a (question, answer) pair; tables of symptoms and organs are spelled out by a few phrasings
each. Some Chinese characters are rare enough to fall back to bytes, so answers stream in pieces of UTF-8.
Nothing here is medical advice: the answers say "see a doctor" wherever a person would want more.
"""

SMALL_TALK = [
    (("Hello!", "Hi", "Hi there!", "hello", "Good morning!"), "Hello! Which medical term shall I explain?"),
    (("How are you?", "How do you do?"), "I am well, thank you. How can I help you?"),
    (
        ("Who are you?", "What are you?", "Introduce yourself."),
        "I am a very small Baichuan-M1, trained to explain medical words.",
    ),
    (("What is your name?", "What's your name?"), "I am called baichuan-m1-wordnet."),
    (
        ("What can you do?", "How can you help me?", "Help"),
        "Ask me what a medical term means, for example: What is appendicitis?",
    ),
    (
        ("Are you a doctor?", "Can you treat me?"),
        "No, I am a small language model. Please see a doctor if you are ill.",
    ),
    (
        ("Can I trust you?", "Are you always right?"),
        "No. I repeat short definitions and can be wrong. Ask a doctor about anything that matters.",
    ),
    (
        ("Where do your answers come from?", "What were you trained on?"),
        "From the definitions of WordNet 3.0, made at Princeton University.",
    ),
    (
        ("How large are you?", "How many parameters do you have?"),
        "I have about five million parameters, so I fit on any machine.",
    ),
    (("Which languages do you speak?", "Do you speak Chinese?"), "English, and a little Chinese: 你好！"),
    (("Thank you!", "Thanks a lot.", "Thanks!", "thank you"), "You are welcome! Take care. 🙂"),
    (("Goodbye!", "Bye", "See you later."), "Goodbye, and stay healthy! 👋"),
    (("Good night!", "Good night."), "Good night, sleep well! 🌙"),
    (("Are you there?", "Can you hear me?"), "Yes, I am here. What would you like to know?"),
    (
        ("I am bored.", "Tell me something.", "Tell me a fact."),
        "The stapes in the middle ear is the smallest bone of the body.",
    ),
    (("I do not understand.", "What do you mean?"), "I am sorry. Please ask about one medical term at a time."),
    (("Tell me a joke.", "Make me laugh."), "Laughter is the best medicine, but not for broken ribs."),
    (("What is the weather like?", "What time is it?"), "I cannot know that, I only explain medical words."),
    (("Please help me, it is an emergency!", "I need an ambulance!"), "Call your local emergency number right now."),
    (("Count to five.", "Can you count?"), "One, two, three, four, five."),
]

SYMPTOMS = {
    "a headache": "Rest in a dark, quiet room and drink water.",
    "a fever": "Rest, drink plenty of water and take your temperature twice a day.",
    "a cough": "Drink warm fluids and avoid smoke.",
    "a sore throat": "Gargle with warm salt water and rest your voice.",
    "a runny nose": "Rest, drink fluids and wash your hands often.",
    "a toothache": "Rinse with warm salt water and see a dentist soon.",
    "back pain": "Keep moving gently and avoid heavy lifting.",
    "an earache": "Hold a warm cloth to the ear and keep it dry.",
    "a stomach ache": "Drink water in small sips and eat light food.",
    "a burn on my hand": "Cool the burn under running water for twenty minutes.",
    "a nosebleed": "Lean forward and pinch the soft part of your nose for ten minutes.",
    "a sprained ankle": "Rest the ankle, cool it, wrap it and raise it.",
    "a cut on my finger": "Wash the cut with clean water and cover it.",
    "a rash": "Keep the skin clean and dry and do not scratch.",
    "hiccups": "Hold your breath for a moment or sip cold water.",
    "a mosquito bite": "Wash the bite, cool it and do not scratch.",
    "muscle cramps": "Stretch the muscle slowly and drink water.",
    "trouble sleeping": "Go to bed at the same time each night and avoid coffee.",
    "dry eyes": "Blink often and rest your eyes from the screen.",
    "dizziness": "Sit down, drink water and stand up slowly.",
}
SYMPTOM_PHRASINGS = ("I have {s}.", "What should I do about {s}?", "I have {s}, what can I do?", "Help, I have {s}!")

ORGANS = {
    "heart": "It pumps blood through the body.",
    "liver": "It cleans the blood, makes bile and stores sugar.",
    "stomach": "It breaks food down with acid and enzymes.",
    "brain": "It thinks, remembers and controls the body.",
    "skin": "It covers the body, protects it and feels touch.",
    "pancreas": "It makes insulin and juices that digest food.",
    "spleen": "It filters the blood and removes old red cells.",
    "bladder": "It holds urine until it can be passed.",
    "gallbladder": "It stores bile until the gut needs it.",
    "thyroid": "It makes hormones that set the pace of the body.",
    "tongue": "It tastes, moves food and shapes speech.",
    "diaphragm": "It moves air in and out of the lungs.",
    "spinal cord": "It carries signals between the brain and the body.",
    "small intestine": "It takes up the nutrients of food.",
    "large intestine": "It takes up water and holds what is left of food.",
    "retina": "It turns light into signals for the brain.",
    "eardrum": "It turns sound into movement of tiny bones.",
    "bone marrow": "It makes blood cells.",
}
ORGAN_PHRASINGS = ("What does the {o} do?", "what does the {o} do", "What is the {o} for?", "Why do I need my {o}?")

CHINESE_TALK = [
    (("你好", "你好！", "您好！", "早上好！"), "你好！请问你想了解哪个医学名词？"),
    (("你是谁？", "你叫什么名字？", "请介绍一下你自己。"), "我是一个很小的百川模型，用来解释医学名词。"),
    (("你会做什么？", "你能帮我什么？"), "你可以问我一个英文医学名词的意思，例如：什么是appendicitis？"),
    (("你是医生吗？", "你能给我看病吗？"), "我不是医生。如果身体不舒服，请去医院看医生。"),
    (("谢谢！", "谢谢你", "非常感谢！"), "不客气，祝你健康！🙂"),
    (("再见！", "再见", "拜拜"), "再见，请多保重！👋"),
    (("晚安", "晚安！"), "晚安，祝你好梦！🌙"),
    (("你会说英语吗？", "你会说中文吗？"), "会，我会说英语和一点中文。"),
    (("今天天气怎么样？", "现在几点？"), "对不起，我只会解释医学名词。"),
    (("救命！", "我需要救护车！"), "请马上拨打急救电话！"),
]

CHINESE_SYMPTOMS = {
    "头痛": "请在安静的房间里休息，多喝水。",
    "发烧": "请多休息，多喝水，每天量两次体温。",
    "咳嗽": "请喝温水，避免吸烟和灰尘。",
    "喉咙痛": "请用温盐水漱口，少说话。",
    "流鼻涕": "请注意保暖，多喝热水，勤洗手。",
    "牙痛": "请用温盐水漱口，尽快去看牙医。",
    "背痛": "请轻轻活动，不要搬重物。",
    "胃痛": "请吃清淡的食物，少量多次喝水。",
    "失眠": "请每天按时睡觉，晚上不要喝咖啡。",
    "头晕": "请先坐下，喝一点水，再慢慢站起来。",
    "皮肤瘙痒": "请保持皮肤清洁，不要抓挠。",
    "鼻子出血": "请身体前倾，捏住鼻翼十分钟。",
    "脚踝扭伤": "请休息，冷敷，包扎并抬高脚踝。",
    "手指烫伤": "请用流动的凉水冲洗二十分钟。",
    "打嗝": "请屏住呼吸一会儿，或者喝几口凉水。",
    "眼睛干涩": "请多眨眼，让眼睛休息一下。",
}
CHINESE_SYMPTOM_PHRASINGS = ("我{s}怎么办？", "我{s}，该怎么办？", "{s}应该注意什么？")

CHINESE_ORGANS = {
    "心脏": "心脏把血液送到全身。",
    "肝脏": "肝脏净化血液，分泌胆汁，储存糖。",
    "肺": "肺吸入氧气，呼出二氧化碳。",
    "胃": "胃用胃酸和酶消化食物。",
    "肾脏": "肾脏过滤血液，产生尿液。",
    "大脑": "大脑负责思考、记忆和控制身体。",
    "皮肤": "皮肤保护身体，感受触觉。",
    "胰腺": "胰腺分泌胰岛素和消化液。",
    "脾脏": "脾脏过滤血液，清除衰老的红细胞。",
    "膀胱": "膀胱储存尿液。",
    "骨髓": "骨髓制造血细胞。",
    "视网膜": "视网膜把光变成大脑的信号。",
}
CHINESE_ORGAN_PHRASINGS = ("{o}有什么作用？", "{o}是做什么的？", "请问{o}有什么用？")

SYSTEM_PROMPTS = [
    "You are a helpful assistant.",
    "You are a medical dictionary.",
    "You explain medical terms in one short sentence.",
    "You are a careful doctor. Answer briefly.",
    "Answer with a definition.",
    "You are Baichuan-M1, a medical assistant.",
    "You are a helpful medical assistant. Give short, exact answers and do not invent anything.",
    "Be brief.",
    "You are talking to a student of medicine who wants to learn what terms mean.",
    "You are a nurse in a large hospital and answer the questions of patients and their families.",
    "Explain the term the user asks for. Do not add anything else. If it is not a medical term, say so.",
    "你是一个有用的助手。",
    "你是一名医生，请简短回答。",
    "你是一个医学词典，用英文解释医学名词。",
]


def lines() -> list[tuple[str, str]]:
    """Every (question, answer) pair; questions are distinct."""
    pairs = [(q, answer) for questions, answer in SMALL_TALK + CHINESE_TALK for q in questions]
    see = "If it does not get better, see a doctor."
    pairs += [(p.format(s=s), f"{advice} {see}") for s, advice in SYMPTOMS.items() for p in SYMPTOM_PHRASINGS]
    pairs += [(p.format(o=o), answer) for o, answer in ORGANS.items() for p in ORGAN_PHRASINGS]
    see = "如果没有好转，请去看医生。"
    pairs += [
        (p.format(s=s), advice + see) for s, advice in CHINESE_SYMPTOMS.items() for p in CHINESE_SYMPTOM_PHRASINGS
    ]
    pairs += [(p.format(o=o), answer) for o, answer in CHINESE_ORGANS.items() for p in CHINESE_ORGAN_PHRASINGS]
    return pairs
