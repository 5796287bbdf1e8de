"""What fills the questions outside the world: plain lists. `TRAINED` are for training rows, `HELD` for the held-out
questions."""

TOPICS = (
    "黑洞 恐龙 地震 火山 基因 细胞 电流 磁铁 重力 原子 分子 光合作用 人工智能 机器学习 神经网络 区块链 股票 基金 保险 房贷 汇率 通货膨胀 "
    "考研 高考 留学 公务员 篮球 足球 乒乓球 羽毛球 瑜伽 太极拳 围棋 象棋 麻将 扑克 电竞 动漫 京剧 相声 电影 摇滚乐 芭蕾 油画 书法 摄影 "
    "哲学 心理学 经济学 法律 历史 宗教 佛教 政治 战争 民主 自由 爱情 婚姻 友谊 死亡 命运 长城 故宫 金字塔 敦煌 丝绸之路 三国 宋朝 明朝 "
    "文艺复兴 工业革命 互联网 手机 电脑 微信 抖音 淘宝 外卖 快递 高铁 地铁 飞机 火箭 卫星 航天飞机 无人机 电动车 汽车 太阳能 核能 石油 "
    "咖啡 红酒 茶道 川菜 火锅 奶酪 巧克力 减肥 健身 睡眠 营养 维生素 疫苗 病毒 癌症 中医 针灸 星座 塔罗牌 风水 外星人 时间旅行 平行宇宙 "
    "方程 函数 概率 几何 微积分 圆周率 化学 物理 生物 天文 地理 英语 日语 编程 操作系统 数据库 云计算 芯片 机器人 元宇宙 比特币").split()
HELD_TOPICS = ("引力波 量子纠缠 冰川 潮汐 珊瑚礁 板块运动 遗传病 抗生素 指纹锁 蓝牙 显微镜 望远镜 拍卖 期货 养老金 击剑 马拉松 皮影戏 "
               "交响乐 雕塑 逻辑学 考古 唐诗 甲骨文 郑和下西洋 大航海 纳米材料 三角函数 概率论 潜水艇").split()
PEOPLE = ("牛顿 爱因斯坦 姚明 刘德华 成龙 马云 雷军 乔布斯 比尔盖茨 特朗普 拿破仑 莎士比亚 贝多芬 达芬奇 秦始皇 汉武帝 唐太宗 武则天 成吉思汗 "
          "诸葛亮 关羽 曹操 孔子 老子 苏轼 王羲之 李时珍 张艺谋 邓丽君 王菲 林俊杰 刘翔 郎平 丁俊晖 霍金 居里夫人 达尔文 哥伦布 毕加索 梵高").split()
HELD_PEOPLE = "伽利略 诺贝尔 蔡依林 葛优 樊振东 商鞅 朱元璋 郑成功 肖邦 莫奈 孟德尔 法拉第".split()
PRODUCTS = "ChatGPT GPT4 Claude Gemini 文心一言 通义千问 豆包 Kimi 讯飞星火 Siri 小爱同学 天猫精灵 小度 Copilot 智谱清言 Grok 混元".split()
HELD_PRODUCTS = "Llama Mistral Alexa 小冰 小艺 百川 MiniMax".split()
COUNTRIES = ("巴西 智利 墨西哥 瑞士 荷兰 比利时 丹麦 芬兰 爱尔兰 土耳其 沙特 以色列 肯尼亚 南非 尼日利亚 摩洛哥 新西兰 马来西亚 印度尼西亚 "
             "菲律宾 缅甸 尼泊尔 巴基斯坦 孟加拉国 哥伦比亚 乌拉圭 牙买加 冰岛 捷克 罗马尼亚").split()
HELD_COUNTRIES = "坦桑尼亚 赞比亚 厄瓜多尔 立陶宛 塞尔维亚 斯里兰卡 柬埔寨 玻利维亚 卢森堡".split()
BOOKS = "围城 平凡的世界 活着 边城 子夜 家 悲惨世界 战争与和平 老人与海 哈利波特 小王子 简爱 飘 三体 狂人日记 茶馆 雷雨".split()
HELD_BOOKS = "白鹿原 呼啸山庄 红与黑 城南旧事 追风筝的人 静静的顿河".split()
NOUNS = "桌子 汽车 老师 苹果 学校 跑步 太阳 音乐 石头 牛奶 铅笔 电话 窗户 蓝色 星期 中国 鱼 书 水 猫 饭 路 花 医院 火车 手机".split()
HELD_NOUNS = "冰箱 森林 钢琴 筷子 邮票 蝴蝶 数学 篮球".split()
ILLNESSES = "糖尿病 高血压 肺炎 胃炎 近视 过敏 抑郁症 骨折 哮喘 肝炎 颈椎病".split()
HELD_ILLNESSES = "痛风 贫血 白内障 阑尾炎".split()
ANIMALS = "小猫 老虎 大象 兔子 恐龙 小狗 鲸鱼 凤凰".split()
HELD_ANIMALS = "骆驼 企鹅 蜻蜓".split()

TRAINED = {"topic": TOPICS, "person": PEOPLE, "product": PRODUCTS, "country": COUNTRIES, "book": BOOKS, "noun": NOUNS,
           "illness": ILLNESSES, "animal": ANIMALS}
HELD = {"topic": HELD_TOPICS, "person": HELD_PEOPLE, "product": HELD_PRODUCTS, "country": HELD_COUNTRIES,
        "book": HELD_BOOKS,
        "noun": HELD_NOUNS, "illness": HELD_ILLNESSES, "animal": HELD_ANIMALS}
