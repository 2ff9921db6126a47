// As much of a C preprocessor as include guards need: which lines of a source would be compiled.

enum StandinPreprocessor {
  /// Lines outside comments and outside conditionals that are false; unknown conditions are true.
  static func active(_ source: String) -> [String] {
    var defined: Set<String> = []
    var stack: [Bool] = []
    var lines: [String] = []
    for raw in source.split(separator: "\n", omittingEmptySubsequences: false) {
      let line = String(raw.drop { $0 == " " || $0 == "\t" })
      let words = line.split(separator: " ").map(String.init)
      switch words.first {
      case "#ifndef": stack.append(!defined.contains(words[1]))
      case "#ifdef": stack.append(defined.contains(words[1]))
      case "#if": stack.append(!line.contains("!defined(__HAVE_BFLOAT__)"))
      case "#else": stack[stack.count - 1].toggle()
      case "#endif": stack.removeLast()
      default:
        guard stack.allSatisfy({ $0 }), !line.hasPrefix("//") else { continue }
        if words.first == "#define", words.count > 1 { defined.insert(words[1]) }
        lines.append(line)
      }
    }
    return lines
  }
}
