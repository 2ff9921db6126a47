import CryptoKit
import Foundation
@preconcurrency import Metal

/// Which `simdgroup_event` a source is compiled with.
enum ShaderVariant: String, Codable, CaseIterable {
  /// Upstream's: hardware copies through private intrinsics.
  case upstream
  /// Ours: the lanes copy; any compiler accepts it.
  case plain
}

/// A source in the one form in which it is hashed and compiled.
struct ShaderText {
  let variant: ShaderVariant
  let source: String
  let key: String

  private static let include = "#include \"GEMMBFloatTypes.h\""
  private static let eventGuard = "#ifndef __METAL_SIMDGROUP_EVENT"

  /// The forms of `source` to be tried, best first.
  ///
  /// A source without a `simdgroup_event` has one form, whatever is forced.
  static func forms(
    of source: String, options: MTLCompileOptions, forced: ShaderVariant?
  ) -> [ShaderText] {
    let whole = source.replacingOccurrences(of: include, with: embeddedBFloatHeader)
    let variants: [ShaderVariant] =
      whole.contains(eventGuard) ? forced.map { [$0] } ?? ShaderVariant.allCases : [.upstream]
    return variants.map { variant in
      let text = variant == .plain ? plainSimdgroupEvent + whole : whole
      return ShaderText(
        variant: variant, source: text, key: key(source: text, options: options))
    }
  }

  /// SHA-256 of one line that states the options, and the source.
  static func key(source: String, options: MTLCompileOptions) -> String {
    hexadecimal(of: Data((describe(options) + "\n" + source).utf8))
  }

  /// The options that are really compiled with: those given, which are the caller's to state.
  ///
  /// What a new object says of mathematics depends on the system, and a key must not: every call of
  /// the forward path sets the mode (overlay.toml). Where there are no options at all it is relaxed,
  /// what Apple documents as the default on Apple silicon; unlike fast, it honours infinities and NaN.
  static func settled(_ given: MTLCompileOptions?) -> MTLCompileOptions {
    let options = MTLCompileOptions()
    if let given {
      options.languageVersion = given.languageVersion
      options.optimizationLevel = given.optimizationLevel
      options.preserveInvariance = given.preserveInvariance
      options.preprocessorMacros = given.preprocessorMacros
      options.mathFloatingPointFunctions = given.mathFloatingPointFunctions
    }
    options.mathMode = given?.mathMode ?? .relaxed
    return options
  }

  static func hexadecimal(of data: Data) -> String {
    SHA256.hash(data: data).map { String(format: "%02x", $0) }.joined()
  }

  /// `language=3.2 math=relaxed functions=fast optimization=default invariance=no macros=A=1,B=2`
  static func describe(_ options: MTLCompileOptions) -> String {
    let macros = (options.preprocessorMacros ?? [:]).map { "\($0.key)=\($0.value)" }.sorted()
    return [
      "language=\(language(options))",
      "math=\(math(options))",
      "functions=\(functions(options))",
      "optimization=\(options.optimizationLevel == .size ? "size" : "default")",
      "invariance=\(options.preserveInvariance ? "yes" : "no")",
      "macros=\(macros.joined(separator: ","))",
    ].joined(separator: " ")
  }

  static func language(_ options: MTLCompileOptions) -> String {
    let raw = options.languageVersion.rawValue
    return "\(raw >> 16).\(raw & 0xFFFF)"
  }

  static func functions(_ options: MTLCompileOptions) -> String {
    options.mathFloatingPointFunctions == .precise ? "precise" : "fast"
  }

  static func math(_ options: MTLCompileOptions) -> String {
    switch options.mathMode {
    case .safe: "safe"
    case .relaxed: "relaxed"
    default: "fast"
    }
  }
}
